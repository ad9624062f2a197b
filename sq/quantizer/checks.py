"""Checks before the first layer is solved: Hessians, grids, and the cost of the solver."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from sq.core.progress import say
from sq.errors import SqError, one_line
from sq.network import geometry
from sq.runtime import cpu_threads
from sq.types.problem import Grid, Layer, Plan, Solve

# Relative to the largest entry of a Hessian: sums in another order differ by less.
ASYMMETRY_TOLERANCE = 1e-5
PROBE_SIZE = 1024  # rows and columns of the matrices that measure the speed of products
ANNOUNCED_OPERATIONS = 1e9  # fewer are done before the line is read
NAMED_LAYERS = 3  # that a message names, the others are counted


def check_hessian(layer: Layer, hessian: Tensor) -> None:
    """Raise an `SqError` unless the `hessian` of `layer` is (G, I, I), finite and symmetric."""
    expected = (layer.groups, layer.inputs, layer.inputs)
    if tuple(hessian.shape) != expected:
        raise SqError(
            f"layer {layer.name}: its Hessian is {tuple(hessian.shape)}, its weight needs "
            f"{expected}: collect the statistics of this network again"
        )
    not_finite = int((~torch.isfinite(hessian)).sum())
    if not_finite:
        raise SqError(
            f"layer {layer.name}: {not_finite} of the {hessian.numel()} entries of its Hessian are "
            "NaN or infinite: check weights and calibration images, and collect the statistics "
            "again"
        )
    largest = float(hessian.abs().max())
    asymmetry = float((hessian - hessian.mT).abs().max())
    if asymmetry > ASYMMETRY_TOLERANCE * largest:
        raise SqError(
            f"layer {layer.name}: its Hessian is not symmetric (entries differ by {asymmetry:.2g}, "
            f"the largest is {largest:.2g}): collect the statistics again, or use (H + H^T) / 2"
        )


def check_grid(layer: Layer, grid: Grid) -> None:
    """Raise an `SqError` unless the values of the `grid` of `layer` are finite and rise."""
    lowest, highest = grid.bounds()
    if not (torch.isfinite(lowest).all() and torch.isfinite(highest).all()):
        raise SqError(
            f"layer {layer.name}: its grid holds NaN or infinity: check its weights and the "
            "settings of grid"
        )
    # Channels whose scale is 0 or negative.
    empty = (highest <= lowest).flatten().nonzero().flatten().tolist()
    if empty:
        raise SqError(
            f"layer {layer.name}: the grid of channel {empty[0]} has scale 0 or below "
            f"({len(empty)} such channels): its values do not rise; check its weights and the "
            "settings of grid"
        )


def announce(layers: Sequence[Layer], solve: Solve) -> dict[str, Plan]:
    """Log the cost of `solve` before it begins, if its module has a `sq.types.problem.Plan`.

    Returns
    -------
    the plan of each layer, by name; {} if the solver has none

    Raises
    ------
    SqError : a layer is too large for the solver; the widest such layers are named
    """
    # Looked up by name: a solver needs no plan.
    function = getattr(solve, "func", solve)  # of a `functools.partial`
    plan = getattr(sys.modules.get(function.__module__), "plan", None)
    if plan is None:
        return {}
    plans = _plans(layers, plan, getattr(solve, "keywords", {}))
    operations = sum(layer_plan.operations for layer_plan in plans.values())
    if operations < ANNOUNCED_OPERATIONS:
        return plans
    weight = geometry.weight(layers[-1].module)  # all have its dtype and device
    rate = _products_per_second(weight.dtype, weight.device)
    memory = max(layer_plan.bytes for layer_plan in plans.values()) / 2**30
    say(
        f"{function.__module__.rpartition('.')[2]}: {operations / 1e9:.3g} GFLOP, "
        f"{operations / rate:.2g} s or more at the {rate / 1e9:.3g} GFLOP/s of matrix products; up "
        f"to {memory:.2g} GiB for inverse Hessians"
    )
    return plans


def _plans(
    layers: Sequence[Layer], plan: Callable[..., Plan], knobs: Mapping[str, Any]
) -> dict[str, Plan]:
    """Return the plan of each layer, by name; raise an `SqError` that names those too large."""
    plans: dict[str, Plan] = {}
    refused: list[str] = []
    # The widest first: a message names those that need most.
    for layer in sorted(layers, key=lambda layer: -layer.inputs):
        element_size = geometry.weight(layer.module).element_size()
        try:
            plans[layer.name] = plan(layer, element_size, **knobs)
        except SqError as error:
            refused.append(f"layer {layer.name}: {one_line(error)}")
    if refused:
        message = "; ".join(refused[:NAMED_LAYERS])
        if len(refused) > NAMED_LAYERS:
            message += f"; and {len(refused) - NAMED_LAYERS} more layers"
        raise SqError(message)
    return plans


def _products_per_second(dtype: torch.dtype, device: torch.device) -> float:
    """Return the FLOP/s of matrix products; on a CPU, those of one thread times the threads."""
    A = torch.ones(PROBE_SIZE, PROBE_SIZE, dtype=dtype, device=device)
    best = float("inf")
    with cpu_threads.use(1):
        for _ in range(3):
            start = time.perf_counter()
            float((A @ A)[0, 0])  # reading a number waits for the device
            best = min(best, time.perf_counter() - start)
    threads = cpu_threads.allowed() if device.type == "cpu" else 1
    return 2 * PROBE_SIZE**3 / best * threads
