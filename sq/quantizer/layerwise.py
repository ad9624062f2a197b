"""Layerwise quantization: each layer's weight, Hessian and grid go to a solver.

With calibration.inputs "reference", every layer is solved for its inputs in the full-precision
network. Layers are then independent, and all solvers get the same statistics, damping and grid. On
a CPU, layers are solved in parallel, one thread each. With "quantized", a layer is solved for its
inputs when the layers before it are quantized (see `sq.hessian.asymmetric`): one layer after the
other.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor, nn

from sq.activation import insertion
from sq.core.progress import say, track
from sq.core.wording import quantity
from sq.errors import SqError
from sq.hessian import asymmetric
from sq.hessian.layer_statistics import relative_error
from sq.network import geometry
from sq.network.copies import copied
from sq.quantizer.checks import announce, check_grid, check_hessian
from sq.runtime import cpu_threads, memory
from sq.runtime.phase_timer import synchronize
from sq.types.problem import (
    Grid,
    Layer,
    Plan,
    Problem,
    QuantizedLayer,
    QuantizedModel,
    Solve,
    digest,
    solution,
)

T = TypeVar("T")
R = TypeVar("R")

# Damping is a share of the mean of the diagonal of H. Each retry multiplies it, up to a maximum.
DAMPING_FACTOR = 10.0
MAX_DAMPING = 1.0
FIRST_RETRY_DAMPING = 1e-8  # if no damping was asked for


@dataclass(frozen=True)
class Target:
    """The problem of one layer: codes near to the weight W (G, O, I), in the norm of H (G, I, I).

    `error` returns ||W X - Q X^||^2 / ||W X||^2 of a solution Q.
    """

    W: Tensor
    hessian: Tensor
    error: Callable[[Tensor], float]


@dataclass(frozen=True)
class FittedGrid:
    """The grid of one layer, and the seconds it took to fit."""

    grid: Grid
    seconds: float


def quantize(problem: Problem, *, solve: Solve, damp: float) -> QuantizedModel:
    """Quantize every layer with `solve`.

    Parameters
    ----------
    solve : ``solve(W, H, grid) -> codes``
    damp : added to the diagonal of H, as a share of its mean; in [0, 1]

    Raises
    ------
    SqError : before any layer is solved: a Hessian or grid that no solver can use, a layer too
        large for the solver's memory, or `damp` out of range. Later: a Hessian that is not positive
        definite even with the largest damping
    """
    check_damp(damp)
    layers = problem.model.layers
    for layer in layers:
        check_hessian(layer, problem.statistics.layers[layer.name].hessian)
    plans = announce(layers, solve)
    # Layers of `net` are quantized one after the other; the network of `problem` does not change.
    net = copied(problem.model.net)
    insertion.attach(net, problem.activations)
    quantized: dict[str, QuantizedLayer] = {}
    for targets in _targets(problem, net, damp):
        ready = [layer for layer in layers if layer.name in targets]
        workers = _LayerWorkers(ready, plans, problem.batch.x.device)
        # All grids are fitted and checked before the first layer is solved: no long work is lost to
        # a bad grid.
        grids = workers.map("grids", partial(_fit, targets=targets, problem=problem))
        solve_layer = partial(_solve, targets=targets, grids=grids, solve=solve, damp=damp)
        if not quantized:
            _warm_up(ready, solve_layer)
        for name, layer_result in workers.map("quantize", solve_layer).items():
            quantized[name] = layer_result
            decoded = layer_result.grid.decode(layer_result.codes)
            geometry.set_weight(net.get_submodule(name), decoded)
    return QuantizedModel(net, quantized)


def _warm_up(layers: Sequence[Layer], solve_layer: Callable[[Layer], QuantizedLayer]) -> None:
    """Solve the smallest layer once, so that no measured time includes the start of a library."""
    smallest = min(layers, key=lambda layer: layer.groups * layer.outputs * layer.inputs**2)
    with cpu_threads.use(1):
        solve_layer(smallest)


def _solve_operations(layer: Layer) -> int:
    """Return the multiply-adds of solving `layer`, up to a factor that depends on the solver."""
    return layer.groups * layer.inputs**2 * (layer.inputs + layer.outputs)


@dataclass(frozen=True)
class _LayerWorkers:
    """Calls a function for each of `layers`; on a CPU in parallel, within half the free memory."""

    layers: Sequence[Layer]
    plans: Mapping[str, Plan]  # of the solver, by layer name; layers may be missing
    device: torch.device

    def map(self, label: str, function: Callable[[Layer], R]) -> dict[str, R]:
        """Return the results of `function` by layer name; `label` is for the progress bar.

        A single layer gets several threads if its products are large.
        """
        if self.device.type != "cpu":
            return {
                layer.name: function(layer) for layer in track(self.layers, label, len(self.layers))
            }
        # With quantized inputs, layers come one at a time: threads can only help within a layer.
        if len(self.layers) == 1:
            (layer,) = self.layers
            with cpu_threads.for_product(layer.inputs**2 * max(layer.inputs, layer.outputs)):
                return {layer.name: function(layer)}
        # Half, because free memory is an estimate and solvers allocate besides.
        room = memory.available(self.device) / 2
        results = cpu_threads.each(
            function, self.layers, label, cost=_solve_operations, size=self._bytes, room=room
        )
        names = [layer.name for layer in self.layers]
        return dict(zip(names, results, strict=True))

    def _bytes(self, layer: Layer) -> int:
        """Return the memory that solving `layer` takes."""
        matrix_bytes = memory.FLOAT64 * layer.groups * layer.inputs**2
        plan = self.plans.get(layer.name)
        plan_bytes = plan.bytes if plan else 0
        return memory.SOLVER_COPIES * matrix_bytes + plan_bytes


def _targets(problem: Problem, net: nn.Module, damp: float) -> Iterator[dict[str, Target]]:
    """Yield the targets of the layers that can be solved next, by name.

    Their solutions must be in `net` before the next targets are asked for.
    """
    model, batch = problem.model, problem.batch
    if batch.inputs == "reference":
        yield {layer.name: _reference_target(layer, problem) for layer in model.layers}
        return
    passes = quantity(model.layers, "pass")
    say(
        f"calibration.inputs=quantized: {passes} of both networks over "
        f"{quantity(batch.ids, 'image')}"
    )
    calls = asymmetric.constant_calls(model.net, model.layers, batch.x)
    for layer in track(model.layers, "layers", len(model.layers)):
        pair = asymmetric.collect(net, model.net, layer, batch.x, calls.get(layer.name))
        yield {layer.name: _asymmetric_target(layer, pair, problem, damp)}


def _reference_target(layer: Layer, problem: Problem) -> Target:
    """Return the target for inputs of the full-precision network."""
    W = geometry.weight(layer.module)
    hessian = problem.statistics.layers[layer.name].hessian
    return Target(W, hessian, lambda Q: relative_error(W, Q, hessian))


def _asymmetric_target(
    layer: Layer, pair: asymmetric.Pair, problem: Problem, damp: float
) -> Target:
    """Return the target for inputs of the network quantized so far."""
    W = geometry.weight(layer.module)
    reference = problem.statistics.layers[layer.name].hessian
    # The target W* needs the inverse of H too.
    target, _, _ = with_damping(
        layer.name, lambda share: pair.target(W, damped(pair.H, share)), damp
    )
    return Target(target, pair.H, lambda Q: pair.relative_error(W, Q, reference))


def _fit(layer: Layer, *, targets: Mapping[str, Target], problem: Problem) -> FittedGrid:
    W = targets[layer.name].W
    bits = problem.bits[layer.name]
    grid, elapsed = timed(lambda: problem.grid(layer.name, W, bits), W.device)
    check_grid(layer, grid)
    return FittedGrid(grid, elapsed.seconds)


def _solve(
    layer: Layer,
    *,
    targets: Mapping[str, Target],
    grids: Mapping[str, FittedGrid],
    solve: Solve,
    damp: float,
) -> QuantizedLayer:
    target, fitted = targets[layer.name], grids[layer.name]
    W, hessian = target.W, target.hessian

    def solve_damped(share: float) -> tuple[Tensor, Grid]:
        H = damped(hessian, share).to(W.dtype)
        return solution(solve(W, H, fitted.grid), fitted.grid)

    result, elapsed = timed(lambda: with_damping(layer.name, solve_damped, damp), W.device)
    (codes, grid), damp_used, retries = result
    report = {
        "fit_seconds": fitted.seconds,
        "solve_seconds": elapsed.seconds,
        "relative_error": target.error(grid.decode(codes)),
        "damp_used": damp_used,
        "damp_retries": retries,
        "dead_inputs": int((hessian.diagonal(dim1=-2, dim2=-1) == 0).sum()),
        "codes": digest([codes]),
    }
    if elapsed.cpu is not None:
        report["solve_cpu_seconds"] = elapsed.cpu
    return QuantizedLayer(codes, grid, report)


def check_damp(damp: float) -> None:
    """Raise an `SqError` unless `damp` is in the allowed range."""
    if not 0 <= damp <= MAX_DAMPING:
        raise SqError(
            f"quantizer.damp={damp}: a share of the diagonal's mean, from 0 to {MAX_DAMPING:g}"
        )


def with_damping(name: str, solve: Callable[[float], T], damp: float) -> tuple[T, float, int]:
    """Solve with more and more damping until H is positive definite.

    Parameters
    ----------
    name : of the layer, for the message
    solve : solves with a share of damping; raises `torch.linalg.LinAlgError` if it is too small
    damp : the first share

    Returns
    -------
    the result, the damping used, and the number of retries

    Raises
    ------
    SqError : H is not positive definite even with the largest damping
    """
    retries, share = 0, damp
    while True:
        try:
            return solve(share), share, retries
        except torch.linalg.LinAlgError as error:
            if share >= MAX_DAMPING:
                damping = f"even with damping {share:g}"
                fact = f"layer {name}: its Hessian is not positive definite {damping}"
                raise SqError(
                    f"{fact}; use more calibration images (calibration.images) or drop the layer",
                    call=f"{fact}; give more images or drop the layer",
                ) from error
            retries += 1
            share = min(MAX_DAMPING, max(share * DAMPING_FACTOR, FIRST_RETRY_DAMPING))


def damped(hessian: Tensor, damp: float) -> Tensor:
    """Return H + damp * mean(diag H) * I, a new tensor, group by group.

    A dead input (its diagonal is 0, because no image ever used it) gets the mean itself: its
    weights are rounded to nearest, and no error passes between it and other inputs. The mean is
    over live inputs; without any it is 1.
    """
    diagonal = hessian.diagonal(dim1=-2, dim2=-1)  # (G, I)
    live = diagonal > 0
    mean = diagonal.sum(-1, keepdim=True) / live.sum(-1, keepdim=True).clamp_min(1)
    mean = torch.where(mean > 0, mean, torch.ones_like(mean))
    return hessian + torch.diag_embed(torch.where(live, damp * mean, mean))


@dataclass(frozen=True)
class Elapsed:
    """The time of a call: wall-clock `seconds`, and CPU seconds `cpu`, None on a GPU."""

    seconds: float
    cpu: float | None


def timed(function: Callable[[], T], device: torch.device) -> tuple[T, Elapsed]:
    """Return the result of `function` and its time, work of the device included.

    CPU time is that of this thread if operations have one thread each, so that parallel work of
    other threads does not count. Otherwise it is that of the whole process.
    """
    # Layers solved in parallel have one thread each.
    clock = time.thread_time if torch.get_num_threads() == 1 else time.process_time
    synchronize(device)
    start, cpu_start = time.perf_counter(), clock()
    result = function()
    synchronize(device)
    seconds, cpu = time.perf_counter() - start, clock() - cpu_start
    return result, Elapsed(seconds, cpu if device.type == "cpu" else None)
