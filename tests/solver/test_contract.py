from pathlib import Path

import grids
import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

from sq.config.instantiate import build
from sq.hessian.layer_statistics import loss
from sq.network import geometry
from sq.quantizer import layerwise
from sq.solver import rtn
from sq.types.images import Calibration
from sq.types.problem import LayerStatistics, Model, Problem, Statistics, solution

CONF = Path(__file__).resolve().parents[2] / "conf" / "quantizer"
PARTS = {p.stem: OmegaConf.to_container(OmegaConf.load(p)) for p in sorted(CONF.glob("*.yaml"))}
PARTS = {name: part["solve"] for name, part in PARTS.items() if "solve" in part}
BLIND = ("rtn",)  # does not look at H
# Natural order is part of what GPTQ computes; the others choose their own order, so columns may
# come in any.
FOLLOWS_COLUMNS = ("gptq",)


@pytest.fixture(params=PARTS)
def name(request):
    return request.param


@pytest.fixture(params=[own for own in grids.KINDS if own != "pot_strict"], scope="module")
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def fit(kind):
    return grids.fit(kind)


@pytest.fixture
def found(name):
    # codes and their grid, which some solvers move
    solve = build(PARTS[name], name)
    return lambda W, H, grid: solution(solve(W, H, grid), grid)


@pytest.fixture
def solve(found):
    return lambda W, H, grid: found(W, H, grid)[0]


def test_some_solvers_are_under_test():
    assert {"rtn", "obq", "gptq", "sensiquant"} <= set(PARTS)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("G", "O", "I", "bits"), [(1, 6, 20, 3), (8, 1, 9, 2), (2, 3, 5, 8), (1, 1, 1, 1)]
)
def test_codes_name_grid_values(solve, kind, fit, correlated, dtype, G, O, I, bits):
    W, H = (t.to(dtype) for t in correlated(1, G, O, I))
    grid = fit(W, bits if kind == "uniform" else max(bits, 2))
    codes = solve(W, H, grid)
    assert codes.dtype == torch.int32
    assert codes.shape == W.shape
    assert codes.min() >= 0
    assert codes.max() < grid.levels


def test_inputs_are_not_changed_and_results_repeat(solve, fit, correlated):
    W, H = correlated(2, 2, 6, 40)
    grid = fit(W, 3)
    copies = [t.clone() for t in (W, H, grid.scale, grids.values(grid, 2, 6))]
    first = solve(W, H, grid)
    after = (W, H, grid.scale, grids.values(grid, 2, 6))
    assert all(torch.equal(a, b) for a, b in zip(copies, after, strict=True))
    assert torch.equal(solve(W, H, grid), first)


def test_uncorrelated_inputs_mean_round_to_nearest(found, fit, correlated):
    W, H = correlated(3, 2, 6, 25)
    grid = fit(W, 3)
    nearest = rtn.solve(W, H, grid)
    for diagonal in (torch.ones(2, 25), H.diagonal(dim1=-2, dim2=-1)):
        uncorrelated = torch.diag_embed(diagonal).to(W.dtype)
        codes, own = found(W, uncorrelated, grid)
        if own is grid:
            assert torch.equal(codes, nearest)
        else:  # a grid that has moved has other nearest values
            assert loss(W - own.decode(codes), uncorrelated) < loss(
                W - grid.decode(nearest), uncorrelated
            )


def test_round_to_nearest_is_the_nearest(fit, correlated):
    W, H = correlated(3, 2, 6, 25)
    grid = fit(W, 3)
    levels = grids.values(grid, 2, 6)
    assert torch.equal(
        rtn.solve(W, H, grid).long(), (W.unsqueeze(-1) - levels.unsqueeze(2)).abs().argmin(-1)
    )


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_correlated_inputs_no_worse_than_round_to_nearest(name, found, kind, fit, correlated, bits):
    errors = []
    for seed in range(4):
        W, H = correlated(seed, 2, 8, 40)
        grid = fit(W, bits)
        codes, own = found(W, H, grid)
        error, nearest = loss(W - own.decode(codes), H), loss(W - grid.nearest(W), H)
        errors.append((error, nearest))
    if name in BLIND:
        assert all(error == nearest for error, nearest in errors)
    elif kind == "uniform":
        assert all(error < 0.9 * nearest for error, nearest in errors)
    else:  # OBQ leaves the widest gaps to the end, when little is free to make up for them
        assert sum(error for error, _ in errors) < 0.9 * sum(nearest for _, nearest in errors)


def test_order_of_columns(name, solve, fit, correlated):
    W, H = correlated(5, 1, 6, 40)
    grid = fit(W, 3)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(0))
    permuted = solve(W[:, :, order], H[:, order][:, :, order], grid)
    assert torch.equal(permuted, solve(W, H, grid)[:, :, order]) is (name not in FOLLOWS_COLUMNS)


def test_order_of_rows_and_groups(solve, fit, correlated):
    W, H = correlated(6, 3, 6, 20)
    grid = fit(W, 3)
    codes = solve(W, H, grid)
    rows, groups = [4, 2, 0, 5, 1, 3], [2, 0, 1]
    assert torch.equal(solve(W[:, rows], H, grid.map(lambda t: t[:, rows])), codes[:, rows])
    assert torch.equal(solve(W[groups], H[groups], grid.map(lambda t: t[groups])), codes[groups])
    assert torch.equal(solve(W[1:2], H[1:2], grid.map(lambda t: t[1:2])), codes[1:2])


@pytest.mark.parametrize("scale", [1e-8, 1e-4, 1e4, 1e8])
def test_units_do_not_matter(solve, fit, correlated, scale):
    W, H = correlated(7, 2, 5, 30)
    codes = solve(W, H, fit(W, 3))
    assert torch.equal(solve(scale * W, H, fit(scale * W, 3)), codes)
    assert torch.equal(solve(W, scale * H, fit(W, 3)), codes)
    assert torch.equal(solve(scale * W, scale * H, fit(scale * W, 3)), codes)


@pytest.mark.parametrize("broken", ["negative", "singular", "nan"])
def test_not_positive_definite_is_an_error(name, solve, fit, correlated, broken):
    W, H = correlated(8, 2, 4, 12)
    codes = solve(W, H, fit(W, 3))
    H[1] = {
        "negative": -H[1],
        "singular": torch.ones(12, 12),
        "nan": torch.full((12, 12), torch.nan),
    }[broken]
    if name in BLIND:
        assert torch.equal(solve(W, H, fit(W, 3)), codes)
        return
    with pytest.raises(torch.linalg.LinAlgError):
        solve(W, H, fit(W, 3))


def quantized(solve, W, H, grid):
    net = nn.Linear(W.shape[2], W.shape[1], bias=False).double()
    geometry.set_weight(net, W)
    model = Model(net, [geometry.find(nn.Sequential(net))[0][0]], (1,), "", None)
    model = Model(nn.Sequential(net), model.layers, (1,), "", None)
    statistics = Statistics({"0": LayerStatistics(H, 1)}, 1)
    problem = Problem(
        model,
        Calibration(torch.zeros(0), torch.zeros(0), []),
        statistics,
        lambda W, bits: grid,
        {"0": 3},
    )
    return layerwise.quantize(problem, solve=solve, damp=0.01).layers["0"]


def test_dead_input_is_as_good_as_absent(name, fit, correlated):
    # With fewer rankings than columns, a dead column takes the place of another between two of
    # them; and its own error counts, at the damping it gets, where scales are refitted.
    knobs = {"rankings": None, "refits": 0}
    solve = build(
        PARTS[name] | {knob: own for knob, own in knobs.items() if knob in PARTS[name]}, name
    )
    W, H = correlated(9, 1, 6, 30)
    H[:, 4], H[:, :, 4] = 0, 0
    others = [j for j in range(30) if j != 4]
    grid = fit(W, 2)
    whole = quantized(solve, W, H, grid)
    absent = quantized(solve, W[:, :, others], H[:, others][:, :, others], grid)
    assert whole.report["dead_inputs"] == 1
    assert absent.report["dead_inputs"] == 0
    assert whole.report["damp_used"] == absent.report["damp_used"] == 0.01
    assert torch.equal(whole.codes[:, :, others], absent.codes)
    assert torch.equal(whole.codes[:, :, 4], grid.encode(W)[:, :, 4])
