"""Measure solvers on layers: one process, the same W, H and grid for all, runs of all solvers in turn."""

from __future__ import annotations

import itertools
import statistics
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from sq.bench.settings import Method
from sq.bench.sources import Case
from sq.config.instantiate import build
from sq.core.progress import track
from sq.hessian.layer_statistics import relative_error
from sq.quantizer.layerwise import Elapsed, check_damp, damped, timed, with_damping
from sq.runtime.phase_timer import Clock
from sq.types.problem import Fit, Grid, Layer, solution

Measurement = dict[str, Any]
# a sample's time is split into its shared and its own part by solving 1/HALF of it as well
HALF = 2


@dataclass
class _Problem:
    """A layer at one bit-width, and what solving it took so far."""

    layer: Layer
    W: Tensor
    hessian: Tensor
    bits: int
    grid: Grid
    fit_seconds: float
    order: Tensor  # rows in the order in which samples take them, so that samples are nested
    damped: dict[float, Tensor]  # by share; one layer's, shared by its bit-widths
    runs: dict[tuple[str, int], list[_Run]] = field(default_factory=dict)  # by label and rows

    def at(self, share: float) -> Tensor:
        """Return H, damped, in the precision of W; made once and not timed, as it is the same for all solvers."""
        if share not in self.damped:
            self.damped[share] = damped(self.hessian, share).to(self.W.dtype)
        return self.damped[share]


@dataclass(frozen=True)
class _Run:
    values: Tensor  # (G, rows, I), on the grid
    seconds: float
    damping: dict[str, Any]
    peak: dict[str, int]


def run(
    cases: list[Case],
    methods: list[Method],
    fit: Fit,
    bits: list[int],
    repeats: int,
    device: torch.device,
) -> Iterable[Measurement]:
    """Solve every layer with every method at every bit-width, `repeats` times; yield a measurement for each.

    Repeats are the outer loop, so that what changes on a busy machine meets all solvers alike.

    Raises
    ------
    SqError : a Hessian stays indefinite at the end of the damping ladder
    """
    for method in methods:
        check_damp(method.damp)
    solvers = [(method, build(method.solve, f"quantizers: {method.label}")) for method in methods]
    smallest = min(
        cases, key=lambda case: case.layer.groups * case.layer.outputs * case.layer.inputs**2
    )
    # so that no time holds the start-up of a library
    for problem in _problems(smallest, fit, bits[:1], device):
        for method, solve in solvers:
            _solve(problem, method, solve, problem.layer.outputs, device)
    for number, case in enumerate(cases, 1):
        problems = _problems(case, fit, bits, device)
        turns = list(itertools.product(range(repeats), problems, solvers))
        # A bar for each layer, as making one may show its own, and bars cannot be nested.
        for _, problem, (method, solve) in track(
            turns, f"layer {number} of {len(cases)}", len(turns)
        ):
            for rows in _sizes(method, problem.layer):
                done = _solve(problem, method, solve, rows, device)
                problem.runs.setdefault((method.label, rows), []).append(done)
        for problem in problems:
            yield from (_measurement(case, problem, method) for method in methods)


def _problems(case: Case, fit: Fit, bits: list[int], device: torch.device) -> list[_Problem]:
    W, hessian = case.make()
    order = torch.randperm(case.layer.outputs, generator=torch.Generator().manual_seed(0)).to(
        device
    )
    shared: dict[float, Tensor] = {}
    found = []
    for b in bits:
        grid, spent = timed(partial(fit, W, b), device)
        found.append(_Problem(case.layer, W, hessian, b, grid, spent.seconds, order, shared))
    return found


def _sizes(method: Method, layer: Layer) -> list[int]:
    """Return how many rows are solved: all, or a sample and a part of it."""
    rows = method.rows(layer.outputs, layer.inputs)
    return [rows] if rows == layer.outputs else [rows // HALF, rows]


def _solve(
    problem: _Problem, method: Method, solve: Callable, rows: int, device: torch.device
) -> _Run:
    W, grid = problem.W, problem.grid
    if rows < problem.layer.outputs:
        some = problem.order[:rows]
        W, grid = W[:, some], grid.map(lambda t: t[:, some])
    clock = Clock(device)

    def at(share: float) -> tuple[Any, Elapsed]:
        start = prepared(solve, W, problem.at(share), grid)
        return timed(start, device)

    (result, spent), used, retries = with_damping(problem.layer.name, at, method.damp)
    damping = {"damp_used": used, "damp_retries": retries}
    codes, own = solution(result, grid)
    return _Run(own.decode(codes), spent.seconds, damping, clock.peak_bytes())


def prepared(solve: Callable, W: Tensor, H: Tensor, grid: Grid) -> Callable[[], Any]:
    """Return a function without arguments that does the solve and nothing else.

    A solver that must first build something that is not its algorithm (another library's layer
    objects) has, beside `solve`, a function `prepare` of the same signature, which does that and
    returns the solve; only calling it is timed. Ours have none: all of `solve` counts.
    """
    function = getattr(solve, "func", solve)
    prepare = getattr(sys.modules[function.__module__], "prepare", None)
    if prepare is None:
        return partial(solve, W, H, grid)
    return prepare(W, H, grid, **getattr(solve, "keywords", {}))


def extrapolated(sample: tuple[int, float], part: tuple[int, float], rows: int) -> float:
    """Return the seconds for `rows` rows along the line through two samples, each (rows, seconds).

    What is done once a layer (inverting H) is so counted once. OBQ does some things once for each
    batch of rows that fits in memory; those are counted once, too, so its time comes out too short
    rather than too long: 16 of 128 rows of 1,152 columns gave 4.4 s where all took 5.2 s. A line
    that noise makes fall is taken as flat.
    """
    (large, seconds), (small, fewer) = sample, part
    return seconds + (rows - large) * max(0.0, seconds - fewer) / (large - small)


def _measurement(case: Case, problem: _Problem, method: Method) -> Measurement:
    layer = case.layer
    sizes = _sizes(method, layer)
    taken = {rows: [run.seconds for run in problem.runs[method.label, rows]] for rows in sizes}
    rows, last = sizes[-1], problem.runs[method.label, sizes[-1]][-1]
    times = taken[rows]
    if len(sizes) > 1:
        pairs = zip(taken[rows], taken[sizes[0]], strict=True)
        times = [extrapolated((rows, t), (sizes[0], p), layer.outputs) for t, p in pairs]
    return {
        "layer": layer.name,
        "kind": layer.kind,
        "groups": layer.groups,
        "outputs": layer.outputs,
        "inputs": layer.inputs,
        "count": case.count,
        "quantizer": method.label,
        "choice": method.choice,
        "bits": problem.bits,
        "seconds": statistics.median(times),
        "seconds_min": min(times),
        "seconds_all": times,
        "extrapolated": rows < layer.outputs,
        "solved": {str(size): taken[size] for size in sizes},  # what was really timed, by rows
        "fit_seconds": problem.fit_seconds,
        "errors": _errors(problem, last.values),
        **last.damping,
        "peak_bytes": last.peak,
    }


def _errors(problem: _Problem, solved: Tensor) -> dict[str, float]:
    """Return the relative error of the rows solved, and of each smaller sample of them that another method took.

    Methods are compared on rows that both have solved.
    """
    sizes = {rows for _, rows in problem.runs if rows <= solved.shape[1]}
    whole = solved.shape[1] == problem.layer.outputs
    W = problem.W if whole else problem.W[:, problem.order[: solved.shape[1]]]
    errors = {str(solved.shape[1]): relative_error(W, solved, problem.hessian)}
    for rows in sizes - {solved.shape[1]}:
        first = problem.order[:rows] if whole else torch.arange(rows, device=W.device)
        errors[str(rows)] = relative_error(W[:, first], solved[:, first], problem.hessian)
    return dict(sorted(errors.items(), key=lambda item: int(item[0])))
