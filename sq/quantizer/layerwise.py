"""Layerwise: hand each layer's weight, Hessian and grid to a solver, one layer after the other.

Every layer is solved for the inputs that the full-precision network gives it, so layers are independent and
all solvers see the same problem: the same statistics, damping and grid.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

from sq import layers
from sq.clock import synchronize
from sq.console import track
from sq.errors import SqError
from sq.quantizer.checks import announce, check_grid, check_hessian
from sq.statistics import relative_error
from sq.types import Grid, Layer, Problem, QuantizedLayer, QuantizedModel, Solve, digest, solution

T = TypeVar("T")

LADDER = 10.0  # each retry damps this many times more ...
LAST = 1.0  # ... up to this share of the diagonal's mean
FIRST = 1e-8  # the first rung when no damping was asked for


def quantize(problem: Problem, *, solve: Solve, damp: float) -> QuantizedModel:
    """Quantize every layer with `solve`.

    Parameters
    ----------
    solve : ``solve(W, H, grid) -> codes``
    damp : added to the diagonal of H, as a share of its mean; in [0, 1]

    Raises
    ------
    SqError : a Hessian or grid that no solver can use, or a layer too large for the solver's memory, before any
        layer is solved; a Hessian that stays indefinite at the end of the damping ladder; `damp` out of range
    """
    check_damp(damp)
    every = problem.model.layers
    for layer in every:
        check_hessian(layer, problem.statistics.layers[layer.name].hessian)
    announce(every, solve)
    net = copy.deepcopy(problem.model.net)
    # Fitted and checked before the first layer is solved: nothing that takes long is lost to a bad grid.
    grids = {layer.name: _fit(layer, problem) for layer in track(every, "grids", len(every))}
    smallest = min(every, key=lambda layer: layer.groups * layer.outputs * layer.inputs**2)
    _solve(smallest, problem, grids[smallest.name], solve, damp)  # a warm-up: no layer's time holds a library's start
    done = {}
    for layer in track(every, "quantize", len(every)):
        done[layer.name] = _solve(layer, problem, grids[layer.name], solve, damp)
        values = done[layer.name].grid.decode(done[layer.name].codes)
        layers.set_weight(net.get_submodule(layer.name), values)
    return QuantizedModel(net, done)


def _fit(layer: Layer, problem: Problem) -> tuple[Grid, float]:
    W = layers.weight(layer.module)
    grid, seconds = timed(lambda: problem.fit(W, problem.bits[layer.name]), W.device)
    check_grid(layer, grid)
    return grid, seconds


def _solve(layer: Layer, problem: Problem, fitted: tuple[Grid, float], solve: Solve, damp: float) -> QuantizedLayer:
    W = layers.weight(layer.module)
    hessian = problem.statistics.layers[layer.name].hessian

    def at(share: float) -> tuple[Tensor, Grid]:
        return solution(solve(W, damped(hessian, share).to(W.dtype), fitted[0]), fitted[0])

    ((codes, grid), used, retries), seconds = timed(lambda: climb(layer.name, at, damp), W.device)
    report = {
        "fit_seconds": fitted[1],
        "solve_seconds": seconds,
        "relative_error": relative_error(W, grid.decode(codes), hessian),
        "damp_used": used,
        "damp_retries": retries,
        "dead_inputs": int((hessian.diagonal(dim1=-2, dim2=-1) == 0).sum()),
        "codes": digest([codes]),
    }
    return QuantizedLayer(codes, grid, report)


def check_damp(damp: float) -> None:
    """Raise an `SqError` unless `damp` is a share of the diagonal's mean."""
    if not 0 <= damp <= LAST:
        raise SqError(f"quantizer.damp={damp}: a share of the diagonal's mean, from 0 to {LAST:g}")


def climb(name: str, solve_at: Callable[[float], T], damp: float) -> tuple[T, float, int]:
    """Solve, damping more while H is not positive definite; return the result, the damping used and the retries.

    Parameters
    ----------
    name : the layer's, for the message
    solve_at : solves at a share of damping; raises `torch.linalg.LinAlgError` where that is too little
    damp : the share to begin with

    Raises
    ------
    SqError : still not positive definite at the end of the ladder
    """
    retries, used = 0, damp
    while True:
        try:
            return solve_at(used), used, retries
        except torch.linalg.LinAlgError as error:
            if used >= LAST:
                raise SqError(
                    f"layer {name}: its Hessian is not positive definite even with damping {used:g}; "
                    "use more calibration images (calibration.images) or drop the layer"
                ) from error
            retries, used = retries + 1, min(LAST, max(used * LADDER, FIRST))


def damped(hessian: Tensor, damp: float) -> Tensor:
    """Return H + damp * mean(diag H) * I, a new tensor, group by group.

    A dead input (its diagonal is 0, so no image ever used it) gets the mean itself: its weights are rounded to
    nearest, and no error passes between it and other inputs. The mean is over live inputs; without any it is 1.
    """
    diagonal = hessian.diagonal(dim1=-2, dim2=-1)  # (G, I)
    live = diagonal > 0
    mean = diagonal.sum(-1, keepdim=True) / live.sum(-1, keepdim=True).clamp_min(1)
    mean = torch.where(mean > 0, mean, torch.ones_like(mean))
    return hessian + torch.diag_embed(torch.where(live, damp * mean, mean))


def timed(function: Callable[[], T], device: torch.device) -> tuple[T, float]:
    """Return what `function` returns and the seconds it took, the device's work included."""
    synchronize(device)
    start = time.perf_counter()
    result = function()
    synchronize(device)
    return result, time.perf_counter() - start
