"""Layerwise: hand each layer's weight, Hessian and grid to a solver.

Where `calibration.inputs` is "reference", every layer is solved for the inputs that the
full-precision network gives it: layers are independent, and all solvers see the same problem, the
same statistics, damping and grid. On a CPU they are solved side by side, one thread each. Where it
is "quantized", a layer is solved for what the layers before it, quantized, make of the images (see
`sq.hessian.asymmetric`): one layer after the other.
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

LADDER = 10.0  # each retry damps this many times more ...
LAST = 1.0  # ... up to this share of the diagonal's mean
FIRST = 1e-8  # the first rung when no damping was asked for


@dataclass(frozen=True)
class Target:
    """What a layer is solved for: the weight (G, O, I) to come near to, where H (G, I, I) says what near is.

    `error` tells ||W X - Q X^||^2 / ||W X||^2 of a solution Q.
    """

    W: Tensor
    hessian: Tensor
    error: Callable[[Tensor], float]


def quantize(problem: Problem, *, solve: Solve, damp: float) -> QuantizedModel:
    """Quantize every layer with `solve`.

    Parameters
    ----------
    solve : ``solve(W, H, grid) -> codes``
    damp : added to the diagonal of H, as a share of its mean; in [0, 1]

    Raises
    ------
    SqError : a Hessian or grid that no solver can use, or a layer too large for the solver's
    memory, before any
        layer is solved; a Hessian that stays indefinite at the end of the damping ladder; `damp`
        out of range
    """
    check_damp(damp)
    every = problem.model.layers
    for layer in every:
        check_hessian(layer, problem.statistics.layers[layer.name].hessian)
    plans = announce(every, solve)
    net = copied(problem.model.net)
    insertion.attach(net, problem.activations)
    done: dict[str, QuantizedLayer] = {}
    for targets in _targets(problem, net, damp):
        chosen = [layer for layer in every if layer.name in targets]
        crew = _Crew(chosen, plans, problem.batch.x.device)
        # Fitted and checked before the first layer is solved: nothing that takes long is lost to a
        # bad grid.
        grids = crew.each("grids", partial(_fit, targets=targets, problem=problem))
        solved = partial(_solve, targets=targets, grids=grids, solve=solve, damp=damp)
        if not done:  # a warm-up: no layer's time holds a library's start
            with cpu_threads.use(1):
                solved(
                    min(chosen, key=lambda layer: layer.groups * layer.outputs * layer.inputs**2)
                )
        for name, own in crew.each("quantize", solved).items():
            done[name] = own
            geometry.set_weight(net.get_submodule(name), own.grid.decode(own.codes))
    return QuantizedModel(net, done)


def _work(layer: Layer) -> int:
    """Return about how many multiply-adds solving `layer` takes, up to a factor that solvers differ in."""
    return layer.groups * layer.inputs**2 * (layer.inputs + layer.outputs)


@dataclass(frozen=True)
class _Crew:
    """Does the same for each of `layers`: on a CPU side by side, as many at a time as half of the free memory holds."""

    layers: Sequence[Layer]
    plans: Mapping[str, Plan]  # what the solver says it takes, by layer name; layers may be missing
    device: torch.device

    def each(self, what: str, do: Callable[[Layer], R]) -> dict[str, R]:
        """Return what `do` returns of each layer, by name; `what` is done, for whoever watches.

        A layer by itself has several threads if its products are large.
        """
        if self.device.type != "cpu":
            return {layer.name: do(layer) for layer in track(self.layers, what, len(self.layers))}
        if len(self.layers) == 1:
            (layer,) = self.layers
            with cpu_threads.for_product(layer.inputs**2 * max(layer.inputs, layer.outputs)):
                return {layer.name: do(layer)}
        room = memory.available(self.device) / 2
        results = cpu_threads.each(do, self.layers, what, cost=_work, size=self._bytes, room=room)
        return dict(zip((layer.name for layer in self.layers), results, strict=True))

    def _bytes(self, layer: Layer) -> int:
        plan = self.plans.get(layer.name)
        return memory.SOLVER_COPIES * memory.FLOAT64 * layer.groups * layer.inputs**2 + (
            plan.bytes if plan else 0
        )


def _targets(problem: Problem, net: nn.Module, damp: float) -> Iterator[dict[str, Target]]:
    """Yield the targets of layers that can be solved now, by name; `net` must hold the solutions by the next time."""
    model, batch = problem.model, problem.batch
    if batch.inputs == "reference":
        yield {layer.name: _own_target(layer, problem) for layer in model.layers}
        return
    passes = quantity(model.layers, "pass")
    say(
        f"calibration.inputs=quantized: {passes} of both networks over {quantity(batch.ids, 'image')}"
    )
    calls = asymmetric.constant_calls(model.net, model.layers, batch.x)
    for layer in track(model.layers, "layers", len(model.layers)):
        pair = asymmetric.collect(net, model.net, layer, batch.x, calls.get(layer.name))
        yield {layer.name: _moved_target(layer, pair, problem, damp)}


def _own_target(layer: Layer, problem: Problem) -> Target:
    W, hessian = geometry.weight(layer.module), problem.statistics.layers[layer.name].hessian
    return Target(W, hessian, lambda Q: relative_error(W, Q, hessian))


def _moved_target(layer: Layer, pair: asymmetric.Pair, problem: Problem, damp: float) -> Target:
    W, reference = geometry.weight(layer.module), problem.statistics.layers[layer.name].hessian
    wanted, _, _ = climb(layer.name, lambda share: pair.target(W, damped(pair.H, share)), damp)
    return Target(wanted, pair.H, lambda Q: pair.relative_error(W, Q, reference))


def _fit(layer: Layer, *, targets: Mapping[str, Target], problem: Problem) -> tuple[Grid, float]:
    target = targets[layer.name]
    grid, spent = timed(
        lambda: problem.grid(layer.name, target.W, problem.bits[layer.name]), target.W.device
    )
    check_grid(layer, grid)
    return grid, spent.seconds


def _solve(
    layer: Layer,
    *,
    targets: Mapping[str, Target],
    grids: Mapping[str, tuple[Grid, float]],
    solve: Solve,
    damp: float,
) -> QuantizedLayer:
    target, fitted = targets[layer.name], grids[layer.name]
    W, hessian = target.W, target.hessian

    def at(share: float) -> tuple[Tensor, Grid]:
        return solution(solve(W, damped(hessian, share).to(W.dtype), fitted[0]), fitted[0])

    ((codes, grid), used, retries), spent = timed(lambda: climb(layer.name, at, damp), W.device)
    report = {
        "fit_seconds": fitted[1],
        "solve_seconds": spent.seconds,
        "relative_error": target.error(grid.decode(codes)),
        "damp_used": used,
        "damp_retries": retries,
        "dead_inputs": int((hessian.diagonal(dim1=-2, dim2=-1) == 0).sum()),
        "codes": digest([codes]),
    }
    if spent.cpu is not None:
        report["solve_cpu_seconds"] = spent.cpu
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
    solve_at : solves at a share of damping; raises `torch.linalg.LinAlgError` where that is too
    little
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
                fact = (
                    f"layer {name}: its Hessian is not positive definite even with damping {used:g}"
                )
                raise SqError(
                    f"{fact}; use more calibration images (calibration.images) or drop the layer",
                    call=f"{fact}; give more images or drop the layer",
                ) from error
            retries, used = retries + 1, min(LAST, max(used * LADDER, FIRST))


def damped(hessian: Tensor, damp: float) -> Tensor:
    """Return H + damp * mean(diag H) * I, a new tensor, group by group.

    A dead input (its diagonal is 0, so no image ever used it) gets the mean itself: its weights are
    rounded to nearest, and no error passes between it and other inputs. The mean is over live
    inputs; without any it is 1.
    """
    diagonal = hessian.diagonal(dim1=-2, dim2=-1)  # (G, I)
    live = diagonal > 0
    mean = diagonal.sum(-1, keepdim=True) / live.sum(-1, keepdim=True).clamp_min(1)
    mean = torch.where(mean > 0, mean, torch.ones_like(mean))
    return hessian + torch.diag_embed(torch.where(live, damp * mean, mean))


@dataclass(frozen=True)
class Spent:
    """Seconds that something took: `seconds` on the clock, `cpu` of CPU time; None where a GPU did the work."""

    seconds: float
    cpu: float | None


def timed(function: Callable[[], T], device: torch.device) -> tuple[T, Spent]:
    """Return what `function` returns and what it took, the device's work included.

    CPU time is that of this thread where operations have one thread each, so that what runs side by
    side does not count; of the whole process otherwise.
    """
    clock = time.thread_time if torch.get_num_threads() == 1 else time.process_time
    synchronize(device)
    start, cpu = time.perf_counter(), clock()
    result = function()
    synchronize(device)
    spent = Spent(time.perf_counter() - start, clock() - cpu if device.type == "cpu" else None)
    return result, spent
