import pytest
import torch
from tolerances import relative

from sq.activation import mse
from sq.activation.histogram import Histogram
from sq.grid.uniform_grid import per_tensor, spanning

TWO_SIDED = ["normal", "silu"]


def fit(seen, bits, *, symmetric=False, norm=2.0, steps=20):
    return mse.fit(seen, bits, symmetric=symmetric, norm=norm, steps=steps)


def lost(x, grid, norm=2.0):
    return float((x.double() - grid.nearest(x.double())).abs().pow(norm).sum())


def every(low, high, steps):
    ends = [
        (low * i / steps, high * j / steps)
        for i in range(1, steps + 1)
        for j in range(1, steps + 1)
    ]
    return sorted(set(ends))


@pytest.mark.parametrize("norm", [1.0, 2.0, 2.4])
@pytest.mark.parametrize("bits", [2, 3, 5])
@pytest.mark.parametrize("kind", ["normal", "silu", "relu", "relu6", "negative", "shifted"])
def test_affine_is_the_best_of_all_ranges_on_the_values_themselves(see, inputs, kind, bits, norm):
    x = inputs[kind][:4000]
    seen = see(x)
    ranges = every(min(seen.low, 0.0), max(seen.high, 0.0), 12)
    least = min(lost(x, per_tensor(low, high, bits, False), norm) for low, high in ranges)
    found = lost(x, fit(seen, bits, norm=norm, steps=12), norm)
    assert least * (1 - 1e-6) <= found <= least * 1.002  # the histogram's resolution


@pytest.mark.parametrize("bits", [2, 3, 5])
@pytest.mark.parametrize("kind", ["normal", "silu", "relu", "negative"])
def test_symmetric_is_the_best_of_all_ranges_on_the_values_themselves(see, inputs, kind, bits):
    x = inputs[kind][:4000]
    far = float(x.abs().max())
    low = -far if float(x.min()) < 0 else 0.0
    ranges = [(low * i / 40, far * i / 40) for i in range(1, 41)]
    least = min(lost(x, per_tensor(*ends, bits, True)) for ends in ranges)
    found = lost(x, fit(see(x), bits, symmetric=True, steps=40))
    assert least * (1 - 1e-6) <= found <= least * 1.002


@pytest.mark.parametrize("norm", [1.0, 2.0, 2.4, 3.0])
@pytest.mark.parametrize("bits", [1, 2, 4, 9])
def test_error_equals_sums_over_many_points(norm, bits):
    random = torch.Generator().manual_seed(bits)
    counts = torch.randint(0, 9, (7,), generator=random).double()
    seen = Histogram(-1.3, 2.9, counts)
    lows, highs = (
        torch.tensor([[-1.3], [-0.4], [-0.2]]).double(),
        torch.tensor([[2.9], [2.0], [0.1]]).double(),
    )
    grid = spanning(lows, highs, bits, False)
    points = 20000
    within = (torch.arange(points, dtype=torch.float64) + 0.5) / points
    edges = seen.edges()
    x = (edges[:-1, None] + within * edges.diff()[:, None]).view(1, -1)  # evenly, in every bin
    wanted = ((x - grid.nearest(x)).abs().pow(norm).view(3, 7, points).mean(2) * counts).sum(1)
    # an approximation: means over points for integrals
    torch.testing.assert_close(mse.error(seen, grid, norm), wanted, rtol=1e-4, atol=1e-12)


@pytest.mark.parametrize("kind", TWO_SIDED)
@pytest.mark.parametrize("chunk", [1, 10**7])
def test_pieces_do_not_matter(see, inputs, monkeypatch, kind, chunk):
    seen = see(inputs[kind], bins=64)
    whole = fit(seen, 3)
    monkeypatch.setattr(mse, "CHUNK", chunk)
    piecewise = fit(seen, 3)
    assert torch.equal(piecewise.scale, whole.scale)
    assert torch.equal(piecewise.low, whole.low)


def test_ends_move_apart(see):
    # One outlier above: only the upper end has to move
    x = torch.cat([torch.linspace(-1, 1, 10001), torch.tensor([8.0])])
    low, high = fit(see(x), 3, steps=40).bounds()
    assert float(low) == pytest.approx(-1, abs=0.2)  # loosely: it hardly moves
    assert 0.7 < float(high) < 2


def test_one_step_is_minmax(see, inputs):
    for kind in TWO_SIDED:
        seen = see(inputs[kind])
        for symmetric in (False, True):
            wanted = per_tensor(seen.low, seen.high, 4, symmetric)
            assert torch.equal(fit(seen, 4, symmetric=symmetric, steps=1).scale, wanted.scale)


@pytest.mark.parametrize("bins", [64, 2048])
def test_many_bits_keep_the_whole_range(see, bins):
    # Steps far narrower than bins: an error taken at the bins' centres would be noise
    x = torch.linspace(-1, 2, 100001)
    grid = fit(see(x, bins), 14)
    assert float(grid.scale) * (2**14 - 1) == pytest.approx(3, rel=relative(2, torch.float32))
