"""Pareto: the bits of least cost at every mean, from the narrowest to the widest network."""

from __future__ import annotations

import time
from typing import Annotated, Any

import numpy as np
from annotated_types import Ge

from sq.allocation.candidates import Joint, Rules, Ties
from sq.allocation.integer_program import Effort
from sq.allocation.program_setup import AllocationProblem, build_problem, decide
from sq.config.constraints import NotNegative, Positive, Whole
from sq.core.progress import track
from sq.types.costs import Budget, Cost, Widths
from sq.types.problem import Layer

Point = dict[str, Any]


def allocate(  # noqa: PLR0913 (knobs, each a line of YAML)
    cost: Cost,
    layers: list[Layer],
    budget: Budget,
    *,
    average_bits: Positive,
    points: Annotated[int, Ge(2)],
    ties: Ties,
    inputs: Joint,
    products: Whole,
    steps: Whole,
    gap: NotNegative,
    time_limit: Positive | None,
) -> Widths:
    """Return the bits of `allocation=ilp` at `average_bits`, with the whole front in the report.

    Parameters
    ----------
    average_bits : upper bound of the mean bits of a weight, for the network that is quantized
    points : number of budgets along the front
    time_limit : seconds for each of them
    others : see `sq.allocation.ilp.allocate`

    Raises
    ------
    SqError : `average_bits` cannot be reached; a layer or width has no sensitivity

    Source
    ------
    Dong et al. 2020 (HAWQ-V2), arXiv:1911.03852, section 3: choose from the front of cost and size.
    Here each of its points is the solution of the integer programme.
    """
    started = time.perf_counter()
    effort = Effort(gap, time_limit, products, steps)
    problem = build_problem(cost, layers, budget, Rules(ties, inputs))
    widths = decide(problem, {"bits": average_bits}, effort)
    front = _front(problem, points, effort, widths)
    widths.report.update(front=front, seconds=time.perf_counter() - started)
    return widths


def _front(problem: AllocationProblem, points: int, effort: Effort, extra: Widths) -> list[Point]:
    """Return the best bits at evenly spaced mean bits, from the least to the most possible.

    There may be fewer points than budgets, since a point is left out if another one has fewer bits
    and no higher cost. That happens when a budget is not used up, or when a search ends with a
    worse choice than one with a smaller budget.

    Parameters
    ----------
    points : number of budgets, including the least and the most
    extra : another choice, which joins the front if it belongs to it

    Returns
    -------
    front : by rising bits, each with "bits" (mean of a weight), "bytes", "bops", "cost", "widths"
        and "inputs"
    """
    candidates = [_point(extra)]
    for bits in track(np.linspace(*problem.reach("bits"), points), "front", points):
        widths = decide(problem, {"bits": float(bits)}, effort)
        candidates.append(_point(widths))
    candidates.sort(key=lambda point: (point["bits"], point["cost"]))
    front: list[Point] = []
    for point in candidates:
        if not front or point["cost"] < front[-1]["cost"]:
            front.append(point)
    return front


def _point(widths: Widths) -> Point:
    bounds = widths.report["bounds"]
    return {
        "bits": bounds["bits"]["used"],
        "bytes": bounds["bytes"]["used"],
        "bops": bounds["bops"]["used"],
        "cost": widths.report["objective"],
        "widths": widths.weights,
        "inputs": widths.inputs,
    }
