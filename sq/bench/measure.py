"""Measure solvers on layers: one process, the same W, H and grid for all, all solvers in turn."""

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
# A part of a sample, 1/SPLIT of its rows, is solved as well: it tells the time that all rows share
# from the time of each row.
SPLIT = 2
Solver = tuple[Method, Callable]  # a method, and its solve function


@dataclass
class _Problem:
    """A layer at one bit-width, and the runs on it so far."""

    layer: Layer
    W: Tensor  # (G, O, I)
    hessian: Tensor  # (G, I, I), undamped
    bits: int
    grid: Grid
    fit_seconds: float
    order: Tensor  # rows in the order in which samples take them, so that samples are nested
    damped: dict[float, Tensor]  # by damping; shared by all bit-widths of the layer
    runs: dict[tuple[str, int], list[_Run]] = field(default_factory=dict)  # by label and rows

    def damped_hessian(self, damp: float) -> Tensor:
        """Return H, damped, in the precision of W; computed once, untimed, for all solvers."""
        if damp not in self.damped:
            self.damped[damp] = damped(self.hessian, damp).to(self.W.dtype)
        return self.damped[damp]

    def sample(self, rows: int) -> tuple[Tensor, Grid]:
        """Return the weight and the grid of the first `rows` rows in the order of samples."""
        if rows == self.layer.outputs:
            return self.W, self.grid
        chosen = self.order[:rows]
        return self.W[:, chosen], self.grid.map(lambda tensor: tensor[:, chosen])


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
    """Solve every layer with every method and bit-width, `repeats` times; yield the measurements.

    Repeats are the outer loop, so that other work on a busy machine affects all solvers alike.

    Raises
    ------
    SqError : a Hessian stays indefinite at the end of the damping ladder
    """
    for method in methods:
        check_damp(method.damp)
    solvers = [(method, build(method.solve, f"quantizers: {method.label}")) for method in methods]
    _warm_up(cases, solvers, fit, bits[0], device)
    for number, case in enumerate(cases, 1):
        problems = _problems(case, fit, bits, device)
        turns = list(itertools.product(range(repeats), problems, solvers))
        # A bar for each layer, as making one may show its own, and bars cannot be nested.
        progress = track(turns, f"layer {number} of {len(cases)}", len(turns))
        for _, problem, (method, solve) in progress:
            for rows in _sample_sizes(method, problem.layer):
                result = _solve(problem, method, solve, rows, device)
                problem.runs.setdefault((method.label, rows), []).append(result)
        for problem, method in itertools.product(problems, methods):
            yield _measurement(case, problem, method)


def _warm_up(
    cases: list[Case], solvers: list[Solver], fit: Fit, bits: int, device: torch.device
) -> None:
    """Solve the smallest layer with every method, so that no time includes a library's start."""
    smallest = min(cases, key=_operations)
    (problem,) = _problems(smallest, fit, [bits], device)
    for method, solve in solvers:
        _solve(problem, method, solve, problem.layer.outputs, device)


def _operations(case: Case) -> int:
    """Return the order of a solver's operations on a layer."""
    layer = case.layer
    return layer.groups * layer.outputs * layer.inputs**2


def _problems(case: Case, fit: Fit, bits: list[int], device: torch.device) -> list[_Problem]:
    """Return a layer at each bit-width, with its grid; only fitting the grid is timed."""
    layer = case.layer
    W, hessian = case.make()
    generator = torch.Generator().manual_seed(0)
    order = torch.randperm(layer.outputs, generator=generator).to(device)
    damped_hessians: dict[float, Tensor] = {}
    problems = []
    for width in bits:
        grid, spent = timed(partial(fit, W, width), device)
        # One dict for all bit-widths: H and its damping do not depend on them.
        problem = _Problem(layer, W, hessian, width, grid, spent.seconds, order, damped_hessians)
        problems.append(problem)
    return problems


def _sample_sizes(method: Method, layer: Layer) -> list[int]:
    """Return how many rows are solved: all of them, or a part of a sample and the sample."""
    rows = method.rows(layer.outputs, layer.inputs)
    return [rows] if rows == layer.outputs else [rows // SPLIT, rows]


def _solve(
    problem: _Problem, method: Method, solve: Callable, rows: int, device: torch.device
) -> _Run:
    """Solve `rows` rows of a problem, with more damping if that is needed."""
    W, grid = problem.sample(rows)
    clock = Clock(device)  # of peak memory

    def attempt(damp: float) -> tuple[Any, Elapsed]:
        start = prepared(solve, W, problem.damped_hessian(damp), grid)
        return timed(start, device)

    (result, spent), damp, retries = with_damping(problem.layer.name, attempt, method.damp)
    damping = {"damp_used": damp, "damp_retries": retries}
    codes, solved_grid = solution(result, grid)
    return _Run(solved_grid.decode(codes), spent.seconds, damping, clock.peak_bytes())


def prepared(solve: Callable, W: Tensor, H: Tensor, grid: Grid) -> Callable[[], Any]:
    """Return a function without arguments that does the solve and nothing else.

    A solver that must first build something that is not its algorithm (another library's layer
    objects) has, beside `solve`, a function `prepare` of the same signature, which does that and
    returns the solve; only calling the latter is timed. Our solvers have none.
    """
    function = getattr(solve, "func", solve)
    prepare = getattr(sys.modules[function.__module__], "prepare", None)
    if prepare is None:
        return partial(solve, W, H, grid)
    return prepare(W, H, grid, **getattr(solve, "keywords", {}))


def extrapolated(sample: tuple[int, float], part: tuple[int, float], rows: int) -> float:
    """Return the seconds for `rows` rows along the line through two samples, each (rows, seconds).

    Work that is done once a layer (inverting H) is counted once. OBQ does some work once for each
    batch of rows that fits in memory; that is counted once, too, so its time comes out too short
    rather than too long: 16 of 128 rows of 1,152 columns gave 4.4 s where all took 5.2 s. A line
    that noise makes fall is taken as flat.
    """
    sample_rows, sample_seconds = sample
    part_rows, part_seconds = part
    added_seconds = max(0.0, sample_seconds - part_seconds)
    added_rows = sample_rows - part_rows
    return sample_seconds + (rows - sample_rows) * added_seconds / added_rows


def _measurement(case: Case, problem: _Problem, method: Method) -> Measurement:
    """Return what a record keeps of a method's runs on one problem."""
    layer = case.layer
    seconds_by_rows = {}
    for rows in _sample_sizes(method, layer):
        seconds_by_rows[rows] = [run.seconds for run in problem.runs[method.label, rows]]
    solved_rows = max(seconds_by_rows)
    last = problem.runs[method.label, solved_rows][-1]
    times = _layer_seconds(seconds_by_rows, layer.outputs)
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
        "extrapolated": solved_rows < layer.outputs,
        # what was really timed, by rows
        "solved": {str(rows): seconds for rows, seconds in seconds_by_rows.items()},
        "fit_seconds": problem.fit_seconds,
        "errors": _errors(problem, last.values),
        **last.damping,
        "peak_bytes": last.peak,
    }


def _layer_seconds(seconds_by_rows: dict[int, list[float]], outputs: int) -> list[float]:
    """Return the seconds for all rows of a layer, one for each repeat."""
    sample_rows, part_rows = max(seconds_by_rows), min(seconds_by_rows)
    if sample_rows == part_rows:  # all rows were solved
        return seconds_by_rows[sample_rows]
    times = []
    repeats = zip(seconds_by_rows[sample_rows], seconds_by_rows[part_rows], strict=True)
    for sample, part in repeats:
        seconds = extrapolated((sample_rows, sample), (part_rows, part), outputs)
        times.append(seconds)
    return times


def _errors(problem: _Problem, solved: Tensor) -> dict[str, float]:
    """Return the relative error of the rows solved, and of each smaller sample that was solved.

    Methods are compared on rows that both have solved.

    Parameters
    ----------
    solved : (G, rows, I) values on the grid: all rows, or the first of `problem.order`
    """
    rows_solved = solved.shape[1]
    is_whole = rows_solved == problem.layer.outputs
    W = problem.W if is_whole else problem.W[:, problem.order[:rows_solved]]
    samples = {rows for _, rows in problem.runs if rows < rows_solved}
    errors = {}
    for rows in sorted(samples):
        # The rows of a sample, in a weight of all rows or in one that is in the order of samples.
        first = problem.order[:rows] if is_whole else torch.arange(rows, device=W.device)
        errors[str(rows)] = relative_error(W[:, first], solved[:, first], problem.hessian)
    errors[str(rows_solved)] = relative_error(W, solved, problem.hessian)
    return errors
