"""Pareto: the bits of least cost at every mean, from the narrowest to the widest, and those of the run's own mean."""

from __future__ import annotations

import time
from typing import Annotated

from annotated_types import Ge

from sq.allocation.candidates import Joint, Rules, Ties
from sq.allocation.integer_program import Effort
from sq.allocation.pareto_front import sweep
from sq.allocation.program_setup import decide, mix
from sq.config.constraints import NotNegative, Positive, Whole
from sq.types.costs import Budget, Cost, Widths
from sq.types.problem import Layer


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
    """Return what `allocation=ilp` does at `average_bits`, and in the report the whole front (`pareto_front`).

    Parameters
    ----------
    average_bits : mean bits of a weight, at most, of the network that is quantized
    points : budgets along the front
    time_limit : seconds for each of them
    others : see `sq.allocation.ilp.allocate`

    Raises
    ------
    SqError : `average_bits` cannot be reached; a layer or width has no price

    Source
    ------
    Dong et al. 2020 (HAWQ-V2), arXiv:1911.03852, section 3: choose from the front of cost and size.
    Each of its points is the integer programme's here.
    """
    started = time.perf_counter()
    effort = Effort(gap, time_limit, products, steps)
    mixture = mix(cost, layers, budget, Rules(ties, inputs))
    own = decide(mixture, {"bits": average_bits}, effort)
    front = sweep(mixture, points, effort, [own])
    own.report.update(front=front, seconds=time.perf_counter() - started)
    return own
