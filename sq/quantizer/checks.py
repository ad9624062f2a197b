"""What is looked at before the first layer is solved: Hessians, grids, and what the solver will take."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable

import torch
from torch import Tensor

from sq.core.progress import say
from sq.errors import SqError, one_line
from sq.network import geometry
from sq.runtime import cpu_threads
from sq.types.problem import Grid, Layer, Plan, Solve

# of a Hessian, relative to its largest entry: sums in another order differ by less
ASYMMETRY = 1e-5
PROBE = 1024  # columns of the matrices that measure the speed of a product


def check_hessian(layer: Layer, hessian: Tensor) -> None:
    """Raise an `SqError` that names `layer` unless its `hessian` is (G, I, I), finite and symmetric."""
    wanted = (layer.groups, layer.inputs, layer.inputs)
    if tuple(hessian.shape) != wanted:
        raise SqError(
            f"layer {layer.name}: its Hessian is {tuple(hessian.shape)}, its weight needs {wanted}: "
            "collect the statistics of this network again"
        )
    bad = int((~torch.isfinite(hessian)).sum())
    if bad:
        raise SqError(
            f"layer {layer.name}: {bad} of the {hessian.numel()} entries of its Hessian are NaN or infinite: "
            "check weights and calibration images, and collect the statistics again"
        )
    largest = float(hessian.abs().max())
    apart = float((hessian - hessian.mT).abs().max())
    if apart > ASYMMETRY * largest:
        raise SqError(
            f"layer {layer.name}: its Hessian is not symmetric (entries differ by {apart:.2g}, the largest is "
            f"{largest:.2g}): collect the statistics again, or hand over (H + H^T) / 2"
        )


def check_grid(layer: Layer, grid: Grid) -> None:
    """Raise an `SqError` that names `layer` if the values of its `grid` are not finite or do not rise."""
    lowest, highest = grid.bounds()
    if not (torch.isfinite(lowest).all() and torch.isfinite(highest).all()):
        raise SqError(
            f"layer {layer.name}: its grid holds NaN or infinity: check its weights and the settings of grid"
        )
    empty = (highest <= lowest).flatten().nonzero().flatten().tolist()
    if empty:
        raise SqError(
            f"layer {layer.name}: the grid of channel {empty[0]} has scale 0 or below ({len(empty)} such channels): "
            "its values do not rise; check its weights and the settings of grid"
        )


def announce(every: Iterable[Layer], solve: Solve) -> dict[str, Plan]:
    """Say what `solve` will take, where it says so itself (see `sq.types.problem.Plan`), before it begins.

    Returns
    -------
    what each layer takes, by name; {} where the solver does not say

    Raises
    ------
    SqError : a layer is too large for it; the widest three such layers are named
    """
    function = getattr(solve, "func", solve)
    plan = getattr(sys.modules.get(function.__module__), "plan", None)
    if plan is None:
        return {}
    knobs = getattr(solve, "keywords", {})
    plans: dict[str, Plan] = {}
    refused: list[str] = []
    # what the first needs is enough for all
    for layer in sorted(every, key=lambda layer: -layer.inputs):
        weight = geometry.weight(layer.module)
        try:
            plans[layer.name] = plan(layer, weight.element_size(), **knobs)
        except SqError as error:
            refused.append(f"layer {layer.name}: {one_line(error)}")
    if refused:
        more = f"; and {len(refused) - 3} more layers" if len(refused) > 3 else ""
        raise SqError("; ".join(refused[:3]) + more)
    operations = sum(p.operations for p in plans.values())
    if operations < 1e9:
        return plans  # over before the line is read
    rate = _products_per_second(weight.dtype, weight.device)
    memory = max(p.bytes for p in plans.values()) / 2**30
    say(
        f"{function.__module__.rpartition('.')[2]}: {operations / 1e9:.3g} GFLOP, {operations / rate:.2g} s or more at "
        f"the {rate / 1e9:.3g} GFLOP/s of matrix products; up to {memory:.2g} GiB for inverse Hessians"
    )
    return plans


def _products_per_second(dtype: torch.dtype, device: torch.device) -> float:
    """Return the floating-point operations a second of matrix products: on a CPU one thread's, times the threads."""
    A = torch.ones(PROBE, PROBE, dtype=dtype, device=device)
    best = float("inf")
    with cpu_threads.use(1):
        for _ in range(3):
            start = time.perf_counter()
            float((A @ A)[0, 0])  # reading a number waits for the device
            best = min(best, time.perf_counter() - start)
    return 2 * PROBE**3 / best * (cpu_threads.allowed() if device.type == "cpu" else 1)
