import pytest
import torch

from sq.hessian.layer_statistics import loss
from sq.solver import obq, sensiquant, sensiquant_plus

KNOBS = {
    "revisions": 2,
    "hold": 0.5,
    "effort": 0.25,
    "least": 0,
    "depth": 8,
    "refits": 2,
    "block": 64,
}


def solve(W, H, grid, **knobs):
    codes, grid = sensiquant_plus.solve(W, H, grid, **KNOBS | knobs)
    return codes, grid, loss(W - grid.decode(codes), H)


def test_nothing_added_is_static_sensiquant(fit, correlated):
    W, H = correlated(0, 2, 6, 30)
    grid = fit(W, 3)
    knobs = {
        "direction": "descending",
        "score": "saliency",
        "aggregate": "sum",
        "rankings": 4,
        "clusters": 4,
        "block": 64,
    }
    static = sensiquant.solve(W, H, grid, order="static", **knobs)
    # all weights lie within a min-max grid, so that there is nothing to clip
    codes, moved, _ = solve(W, H, grid, revisions=0, effort=0.0, refits=0)
    if bool(((grid.bounds()[0] <= W) & (grid.bounds()[1] >= W)).all()):
        assert torch.equal(codes, static)
    assert moved is grid


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_on_average_no_worse_than_obq(fit, correlated, bits):
    ours = theirs = static = 0.0
    for seed in range(8):
        W, H = correlated(seed, 1, 16, 64)
        grid = fit(W, bits)
        reference = loss(W, H)
        ours += solve(W, H, grid)[2] / reference
        exact = obq.solve(W, H, grid, outliers=True, memory_gib=1.0, block=32)
        theirs += loss(W - grid.decode(exact), H) / reference
        static += solve(W, H, grid, revisions=0, effort=0.0, refits=0)[2] / reference
    assert ours <= theirs
    assert ours < static


@pytest.mark.parametrize(
    ("less", "more"),
    [
        ({"effort": 0.0}, {}),
        ({"effort": 0.05}, {"effort": 1.0}),
        ({"refits": 0}, {}),
        ({"depth": 1}, {"depth": 8, "effort": 1.0}),
    ],
)
def test_each_part_pays(fit, correlated, less, more):
    better = worse = 0.0
    for seed in range(8):
        W, H = correlated(seed, 1, 12, 64)
        grid = fit(W, 2)
        better, worse = better + solve(W, H, grid, **more)[2], worse + solve(W, H, grid, **less)[2]
    assert better < worse


def test_clipping_first_pays_where_the_grid_clips(fit, correlated):
    better = worse = 0.0
    for seed in range(8):
        W, H = correlated(seed, 1, 12, 64)
        grid = fit(W, 2)
        assert (grid.bounds()[1] < W).any()
        plain = {"effort": 0.0, "refits": 0}
        better, worse = (
            better + solve(W, H, grid, **plain)[2],
            worse + solve(W, H, grid, revisions=0, **plain)[2],
        )
    assert better < worse


def test_without_refits_the_grid_stays(fit, correlated):
    W, H = correlated(0, 2, 6, 30)
    grid = fit(W, 3)
    assert solve(W, H, grid, refits=0)[1] is grid
    moved = solve(W, H, grid)[1]
    assert not torch.equal(moved.scale, grid.scale)
    assert torch.equal(moved.low, grid.low)
    assert moved.levels == grid.levels


def test_narrow_rows_are_revised_as_well(fit, correlated):
    # nine weights, as in a depthwise kernel: a share of them is less than one round, so `least` is
    # what counts
    better = worse = 0.0
    for seed in range(8):
        W, H = correlated(seed, 16, 1, 9)
        grid = fit(W, 4)
        untouched = solve(W, H, grid, effort=0.0, refits=0)[2]
        assert solve(W, H, grid, effort=0.125, refits=0)[2] == untouched
        better, worse = better + solve(W, H, grid, least=64, refits=0)[2], worse + untouched
    assert better < 0.9 * worse
