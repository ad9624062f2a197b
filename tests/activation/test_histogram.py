import numpy as np
import pytest
import torch

from sq.activation import histogram
from sq.activation.histogram import Histogram, Histograms
from sq.errors import SqError


def collect(*parts, bins=16):
    found = Histograms(bins)
    for part in parts:
        found.widen("a", part)
    found.close()
    for part in parts:
        found.count("a", part)
    return found.finish()["a"]


def values(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("bins", [1, 2, 16, 2048])
def test_counts_equal_numpy(bins):
    x = values(4, 3, 50)
    found = collect(x, bins=bins)
    assert (found.low, found.high) == (float(x.min()), float(x.max()))
    assert found.counts.dtype == torch.float64
    wanted, edges = np.histogram(x.double().numpy(), bins, (found.low, found.high))
    # float32 may put a value that lies on an edge into the bin beside
    assert abs(found.counts.cumsum(0).numpy() - wanted.cumsum()).max() <= 1
    np.testing.assert_allclose(found.edges().numpy(), edges, atol=1e-12)
    np.testing.assert_allclose(found.centres().numpy(), (edges[1:] + edges[:-1]) / 2, atol=1e-12)


def test_by_hand():
    found = collect(torch.tensor([0.0, 0.9, 1.0, 1.0, 3.0, 4.0]), bins=4)
    assert found.counts.tolist() == [2, 2, 0, 2]
    assert found.centres().tolist() == [0.5, 1.5, 2.5, 3.5]


def test_batches_order_and_pieces_do_not_matter(monkeypatch):
    x = values(10, 3, 8, 8)
    whole = collect(x)
    monkeypatch.setattr(histogram, "CPU_CHUNK", 7)
    for parts in (
        x.split(3),
        reversed(x.split(1)),
        [x.contiguous(memory_format=torch.channels_last)],
    ):
        found = collect(*parts)
        assert (found.low, found.high) == (whole.low, whole.high)
        assert torch.equal(found.counts, whole.counts)


def test_layouts_do_not_matter():
    x = values(2, 6, 4, 5)
    whole = collect(x)
    for view in (
        x.transpose(1, 3),
        x.mT,
        x.contiguous(memory_format=torch.channels_last),
        x.double(),
    ):
        assert torch.equal(collect(view).counts, whole.counts)
    assert torch.equal(collect(x[:, ::2], x[:, 1::2]).counts, whole.counts)


@pytest.mark.parametrize("value", [0.0, -2.5, 1e-40, 1e30])
def test_equal_values(value):
    found = collect(torch.full((3, 4), value), bins=5)
    assert found.constant
    assert found.low == found.high == float(torch.tensor(value))
    assert found.counts.tolist() == [12, 0, 0, 0, 0]
    assert found.centres().tolist() == [found.low] * 5


def test_range_too_small_to_divide_by():
    found = collect(torch.tensor([0.0, 1e-44, 1e-43]))
    assert found.counts.sum() == 3
    assert found.high > 0


def test_counts_beyond_what_float32_holds():
    found = Histograms(1)
    found.widen("a", torch.tensor([0.0, 1.0]))
    found.close()
    found.counts["a"] = torch.tensor([2**24])
    found.count("a", torch.tensor([0.0, 1.0, 0.5]))
    assert found.finish()["a"].counts.tolist() == [2**24 + 3]


def test_a_value_outside_the_range_goes_to_the_end():
    found = Histograms(4)
    found.widen("a", torch.tensor([0.0, 1.0]))
    found.close()
    found.count("a", torch.tensor([-0.5, 1.5]))
    assert found.finish()["a"].counts.tolist() == [1, 0, 0, 1]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("place", [0, 1])
def test_not_finite(bad, place):
    parts = [values(5), values(5, seed=1)]
    parts[place][2] = bad
    with pytest.raises(SqError, match="inputs of a hold NaN or infinity"):
        collect(*parts)


def test_input_is_left_alone():
    x = values(3, 4)
    before = x.clone()
    collect(x)
    assert torch.equal(x, before)


def test_frozen():
    with pytest.raises(AttributeError):
        Histogram(0.0, 1.0, torch.zeros(1)).low = 1.0  # type: ignore[misc]
