from functools import partial

import grids
import pytest
import torch
from torch import nn

from sq.errors import SqError
from sq.network import geometry
from sq.quantizer import checks, layerwise
from sq.solver import obq, rtn
from sq.types.images import Calibration
from sq.types.problem import LayerStatistics, Model, Problem, Statistics

NET = nn.Sequential(nn.Linear(6, 4, bias=False), nn.Linear(4, 3, bias=False))


class Counter:
    # a solver that counts its calls: none may come before every layer is checked
    calls = 0

    def __call__(self, W, H, grid):
        self.calls += 1
        return rtn.solve(W, H, grid)


def problem(fit, change=lambda H: H):
    found, _ = geometry.find(NET)
    hessians = [torch.eye(layer.inputs, dtype=torch.float64).unsqueeze(0) for layer in found]
    hessians[1] = change(hessians[1])
    statistics = Statistics(
        {layer.name: LayerStatistics(H, 1) for layer, H in zip(found, hessians, strict=True)}, 1
    )
    batch = Calibration(torch.zeros(0), torch.zeros(0), [])
    return Problem(Model(NET, found, (6,), "", None), batch, statistics, fit, {"0": 3, "1": 3})


def entry(value):
    def change(H):
        H = H.clone()
        H[0, 1, 2] = value
        return H

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            entry(0.5),
            r"layer 1: its Hessian is not symmetric \(entries differ by 0.5, the largest is 1\): .*\(H \+ H\^T\) / 2",
        ),
        (
            entry(torch.nan),
            "layer 1: 1 of the 16 entries of its Hessian are NaN or infinite: check weights and",
        ),
        (entry(torch.inf), "layer 1: 1 of the 16 entries"),
        (
            lambda H: H[:, :3, :3],
            r"layer 1: its Hessian is \(1, 3, 3\), its weight needs \(1, 4, 4\): collect",
        ),
    ],
)
def test_a_bad_hessian_is_named_before_anything_is_solved(fit, change, message):
    solve = Counter()
    with pytest.raises(SqError, match=message):
        layerwise.quantize(problem(fit, change), solve=solve, damp=0.01)
    assert solve.calls == 0


def test_rounding_errors_are_no_asymmetry(fit):
    solve = Counter()
    layerwise.quantize(problem(fit, entry(1e-7)), solve=solve, damp=0.01)
    assert solve.calls == 3  # both layers, and one to warm up


@pytest.mark.parametrize("kind", ["uniform", "post"])
@pytest.mark.parametrize(
    ("scale", "message"),
    [(0.0, "scale 0 or below"), (-1.0, "scale 0 or below"), (torch.nan, "NaN or infinity")],
)
def test_a_bad_grid_is_named_before_anything_is_solved(kind, scale, message):
    fit = grids.fit(kind)

    def bad(W, bits):
        grid = fit(W, bits)
        return grid if W.shape[2] == 6 else grid.map(lambda t: t * scale if t is grid.scale else t)

    solve = Counter()
    with pytest.raises(SqError, match=f"layer 1: .*{message}"):
        layerwise.quantize(problem(bad), solve=solve, damp=0.01)
    assert solve.calls == 0


def test_layers_too_large_for_the_solver_are_all_named_before_anything_is_solved(fit, monkeypatch):
    monkeypatch.setattr(obq, "solve", lambda *_, **__: pytest.fail("solved"))
    solve = partial(obq.solve, outliers=True, memory_gib=1e-8, block=32)
    solve.func.__module__ = "sq.solver.obq"
    with pytest.raises(SqError, match=r"layer 0: 6 columns: .*=0.01 or more; layer 1: 4 columns"):
        layerwise.quantize(problem(fit), solve=solve, damp=0.01)


def test_what_obq_takes_is_said_first(capsys):
    conv = nn.Conv2d(64, 64, 3)
    found, _ = geometry.find(nn.Sequential(conv))
    checks.announce(found, partial(obq.solve, outliers=True, memory_gib=1.0, block=32))
    said = " ".join(capsys.readouterr().err.split())
    assert "obq: 8.15 GFLOP, " in said  # 64 rows of 2/3 576^3
    assert "up to 0.079 GiB" in said  # 64 copies of 576^2 numbers
