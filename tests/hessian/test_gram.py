"""X X^T by whatever way is fastest equals unfold and multiply, in float64."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tolerances import assert_within, gamma
from torch import nn

from sq.hessian import gram
from sq.network import geometry

CASES = {
    "3x3": (nn.Conv2d(3, 4, 3, padding=1), (3, 7, 9)),
    "3x3 same": (nn.Conv2d(3, 4, 3, padding="same"), (3, 7, 9)),
    "3x3 circular": (nn.Conv2d(3, 4, 3, padding=1, padding_mode="circular"), (3, 7, 9)),
    "3x3 reflect": (nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect"), (3, 7, 9)),
    "3x3 replicate": (nn.Conv2d(3, 4, 3, padding=1, padding_mode="replicate"), (3, 7, 9)),
    "3x3 valid": (nn.Conv2d(3, 4, 3), (3, 7, 9)),
    "3x3 on 3 rows": (nn.Conv2d(3, 4, 3), (3, 3, 9)),
    "3x3 wide strides": (nn.Conv2d(3, 4, 3, stride=(1, 2), padding=1), (3, 7, 9)),
    "3x3 stride 2": (nn.Conv2d(3, 4, 3, stride=2, padding=1), (3, 7, 9)),
    "3x3 dilated": (nn.Conv2d(3, 4, 3, dilation=2, padding=2), (3, 9, 9)),
    "3x3 grouped": (nn.Conv2d(6, 4, 3, padding=1, groups=2), (6, 7, 9)),
    "3x3 depthwise": (nn.Conv2d(6, 6, 3, padding=1, groups=6), (6, 7, 9)),
    "5x5": (nn.Conv2d(2, 4, 5, padding=2), (2, 12, 9)),
    "2x4": (nn.Conv2d(2, 4, (2, 4)), (2, 6, 9)),
    "4x1 dilated": (nn.Conv2d(2, 4, (4, 1), dilation=(3, 1)), (2, 25, 3)),
    "7x7 stride 2": (nn.Conv2d(3, 4, 7, stride=2, padding=3), (3, 14, 14)),
    "1x1": (nn.Conv2d(5, 4, 1), (5, 6, 6)),
    "conv 1-D": (nn.Conv1d(3, 4, 5, padding=2), (3, 20)),
    "conv 1-D grouped": (nn.Conv1d(6, 4, 3, groups=2, dilation=2), (6, 20)),
    "linear": (nn.Linear(7, 4), (7,)),
    "linear, two more axes": (nn.Linear(7, 4), (3, 2, 7)),
}


def both(module, x, batches=2):
    # the sum of `gram` over batches of float32 inputs, the definition in float64, and how far they
    # may be apart
    (layer,), _ = geometry.find(nn.Sequential(module))
    way = gram.choose(layer, x, 1.0, 0)
    with torch.no_grad():
        used = sum(
            way.add(part, geometry.positions(module, module(part))) for part in x.chunk(batches)
        )
    X = geometry.inputs(module, x.double())
    assert used == X.shape[2]
    return way.finish(), X @ X.mT, rounding(module, x)


def rounding(module, x):
    """Return how far float32 may put an entry of X X^T off: products of rows in all, and of those at borders.

    A tap sees each element of a channel at most once, so |X| |X|^T is at most the channel's sum of
    squares.
    """
    if isinstance(module, nn.Linear):
        channels = x.reshape(-1, x.shape[-1]).T
    else:
        channels = geometry.padded(module, x)[0].movedim(1, 0).flatten(1)
    return 2 * gamma(channels.shape[1], torch.float32) * channels.double().square().sum(1).max()


def check(found, wanted, bound):
    assert found.dtype == torch.float64
    assert torch.equal(found, found.mT), "symmetric by construction, not by the grace of BLAS"
    assert_within(found, wanted, bound)


@pytest.mark.parametrize("mean", [0.0, 30.0])
@pytest.mark.parametrize("name", CASES)
def test_equals_the_definition(name, mean):
    module, shape = CASES[name]
    x = torch.randn(6, *shape, generator=torch.Generator().manual_seed(0)) + mean
    check(*both(module, x))


def test_ways_taken():
    def way(module, shape):
        (layer,), _ = geometry.find(nn.Sequential(module))
        return type(gram.choose(layer, torch.zeros(2, *shape), 1.0, 0))

    taken = {name: way(module, shape) for name, (module, shape) in CASES.items()}
    direct = {
        "3x3 stride 2",
        "7x7 stride 2",
        "1x1",
        "linear",
        "linear, two more axes",
        "3x3 on 3 rows",
    }
    assert {name for name, kind in taken.items() if kind is gram.Direct} == direct


@given(
    kernel=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    dilation=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    padding=st.integers(0, 3),
    size=st.tuples(st.integers(7, 10), st.integers(7, 10)),
    groups=st.integers(1, 2),
)
def test_both_ways_agree(kernel, dilation, padding, size, groups):
    module = nn.Conv2d(
        2 * groups, groups, kernel, dilation=dilation, padding=padding, groups=groups
    )
    x = torch.randn(3, 2 * groups, *size, generator=torch.Generator().manual_seed(1))
    (layer,), _ = geometry.find(nn.Sequential(module))
    with torch.no_grad():
        positions = geometry.positions(module, module(x))
    ways = (
        gram.Direct(layer, x.device),
        gram.ByDistance(layer, x.device, geometry.padded(module, x)[1]),
    )
    for way in ways:
        way.add(x, positions)
    direct, by_distance = (way.finish() for way in ways)
    check(by_distance, direct, 2 * rounding(module, x))  # both are in float32


def test_images_of_different_sizes_add_up():
    module = nn.Conv2d(3, 4, 3, padding=1)
    (layer,), _ = geometry.find(nn.Sequential(module))
    batches = [
        torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(2))
        for size in ((8, 9), (5, 4), (1, 6))
    ]
    way, wanted, bound = gram.choose(layer, batches[0], 1.0, 0), 0, 0
    assert isinstance(way, gram.ByDistance)
    for x in batches:
        way.add(x, x[:, 0].numel())
        X = geometry.inputs(module, x.double())
        wanted = wanted + X @ X.mT
        bound = bound + rounding(module, x)
    check(way.finish(), wanted, bound)


@pytest.mark.parametrize("name", ["3x3", "3x3 grouped", "linear", "3x3 stride 2"])
def test_small_pieces_change_nothing_but_rounding(name, monkeypatch):
    module, shape = CASES[name]
    x = torch.randn(6, *shape, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(gram, "UNFOLDED", 1)
    monkeypatch.setattr(gram, "BLOCK", 4)
    check(*both(module, x))


def test_inputs_that_do_not_fit_the_outputs_are_noticed():
    module = nn.Conv2d(3, 4, 3, padding=1)
    (layer,), _ = geometry.find(nn.Sequential(module))
    for way in (
        gram.Direct(layer, torch.device("cpu")),
        gram.choose(layer, torch.zeros(1, 3, 8, 8), 1.0, 0),
    ):
        with pytest.raises(AssertionError, match="layer 0: 64 columns of inputs, 63 outputs"):
            way.add(torch.zeros(1, 3, 8, 8), 63)
