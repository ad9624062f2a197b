"""The front: what is best at every size, from the smallest network to the largest."""

from __future__ import annotations

from typing import Any

import numpy as np

from sq.allocation.integer_program import Effort
from sq.allocation.program_setup import Mixture, decide
from sq.core.progress import track
from sq.types.costs import Widths

Point = dict[str, Any]


def sweep(mixture: Mixture, points: int, effort: Effort, more: list[Widths]) -> list[Point]:
    """Return what is best at each of evenly spaced mean bits, from the least to the most that can be reached.

    A budget that is not used up may lead to the same bits as the next, and a search may end worse
    than one with less to spend: so there may be fewer points than budgets, and along the front cost
    falls as bits rise.

    Parameters
    ----------
    points : number of budgets, the least and the most included
    more : other choices, made of the same mixture, that join the front where they belong to it

    Returns
    -------
    front : by rising bits, each with "bits" (mean of a weight), "bytes", "bops", "cost", "widths"
    and "inputs"

    Raises
    ------
    SqError : see `decide`
    """
    budgets = np.linspace(*mixture.reach("bits"), points)
    found = [
        decide(mixture, {"bits": float(bits)}, effort) for bits in track(budgets, "front", points)
    ]
    front: list[Point] = []
    for point in sorted(
        map(_point, [*more, *found]), key=lambda point: (point["bits"], point["cost"])
    ):
        if not front or point["cost"] < front[-1]["cost"]:
            front.append(point)
    return front


def _point(widths: Widths) -> Point:
    used = {name: widths.report["bounds"][name]["used"] for name in ("bits", "bytes", "bops")}
    return used | {
        "cost": widths.report["objective"],
        "widths": widths.weights,
        "inputs": widths.inputs,
    }
