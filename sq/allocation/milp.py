"""Integer programmes solved by HiGHS (scipy's `milp`), without errors from its tolerances.

HiGHS computes in floating point. It takes constraints as kept within 1e-6 and stops at a gap of
1e-6, both absolute. So the use of each resource is counted from the least option of each group, in
units of the greatest common divisor, and the result is checked in integers. Costs are counted from
the cheapest option and scaled. They are scaled again when a total is known that the dearest options
alone exceed.

Of choices with equal cost (up to a share of 1e-9) a second programme takes the one of least `size`,
and of those the one that uses its bits in the first groups. So the result does not depend on the
order in which HiGHS searches.
"""

from __future__ import annotations

import ctypes
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from sq.allocation.integer_program import EQUAL, Effort, Programme, Solution, ceiling
from sq.errors import SqError

LARGEST_COST = 1e4  # after scaling; a gap of 1e-6 is a share of 1e-10 of it
ROUNDING = 1e-15  # share of a sum that depends on the order of its terms
RESCALE_GAIN = 100.0  # costs are scaled again if that resolves them this many times better


@dataclass(frozen=True)
class Columns:
    """The variables of HiGHS, each between 0 and 1: all options, then products for pairs if any."""

    costs: np.ndarray  # (N,), at least 0
    constant: float  # part of the total cost that is not in `costs`
    equal: Any  # (rows, N) sparse
    right: np.ndarray  # (rows,): equal @ x = right


def option_columns(programme: Programme) -> Columns:
    """Return the columns of the options of a programme, without its pairs."""
    from scipy import sparse

    n, groups = len(programme.costs), int(programme.groups[-1]) + 1
    costs, constant = programme.above_least(programme.costs)
    one_per_group = sparse.csr_array(
        (np.ones(n), (programme.groups, np.arange(n))), shape=(groups, n)
    )
    return Columns(costs, constant, one_per_group, np.ones(groups))


def limits(programme: Programme) -> list[tuple[np.ndarray, float]]:
    """Return (row, most) with row @ x <= most for each limit that can be exceeded.

    The units are such that whole uses stay whole numbers.
    """
    rows = []
    for name, limit in programme.limits.items():
        use, least = programme.above_least(programme.uses[name])
        whole = np.issubdtype(use.dtype, np.integer)
        unit = np.gcd.reduce(use) if whole else use.max()
        if unit == 0:  # all options of each group use the same
            continue
        most = (ceiling(limit) - least) / unit
        if whole:
            most = float(np.floor(most))
        rows.append((use / unit, most))
    return rows


def solve(
    programme: Programme, effort: Effort, columns: Columns | None = None, method: str = "ilp"
) -> Solution | None:
    """Return the choice of least cost within the limits, None if no choice keeps all of them.

    Parameters
    ----------
    programme : without pairs, unless `columns` include their products
    columns : by default those of the options
    method : for the report

    Raises
    ------
    SqError : the time ran out before any choice was found
    """
    assert columns is not None or programme.pairs is None
    columns = columns or option_columns(programme)
    highs = _Highs(programme, columns, effort)
    best = highs.minimise_scaled(np.ones(len(columns.costs), dtype=bool))
    if best is None:
        return None
    best = _rescaled(highs, best)
    chosen = best.chosen
    cost = programme.cost(chosen)
    total = cost - columns.constant
    smaller = highs.smallest(best.costs, best.allowed, total * best.scale)
    if smaller is not None:
        tolerance = EQUAL * abs(total) + ROUNDING * abs(cost)
        if programme.cost(smaller) <= cost + tolerance:
            chosen, cost = smaller, programme.cost(smaller)
    bound = columns.constant + best.lowest / best.scale
    return Solution(chosen, cost, min(bound, cost), method)


def _rescaled(highs: _Highs, best: _ScaledSolution) -> _ScaledSolution:
    """Return the solution for costs that are scaled again as long as that resolves them better.

    Columns that cost more than a known total cannot be part of a better choice. Without them, the
    costs that remain can be scaled up.
    """
    programme, columns = highs.programme, highs.columns
    while True:
        total = programme.cost(best.chosen) - columns.constant
        affordable = columns.costs <= total * (1 + EQUAL)  # no cost is negative
        if total <= 0:
            return best
        dearest, dearest_before = columns.costs[affordable].max(), columns.costs[best.allowed].max()
        if dearest * RESCALE_GAIN >= dearest_before:
            return best
        try:
            finer = highs.minimise_scaled(affordable)
        except SqError:  # the time ran out, but there is a choice
            return best
        if finer is None:
            return best
        best = finer


@dataclass(frozen=True)
class _ScaledSolution:
    """The choice of least cost, where costs are multiplied by `scale`."""

    chosen: np.ndarray  # (G,) int
    lowest: float  # lower bound of all choices, scaled
    scale: float
    costs: np.ndarray  # (N,), scaled
    allowed: np.ndarray  # (N,) bool, the columns that could be chosen


class _Highs:
    """Calls of HiGHS on one programme, with one time limit for all of them."""

    def __init__(self, programme: Programme, columns: Columns, effort: Effort):
        from scipy.optimize import LinearConstraint

        self.programme, self.columns, self.effort = programme, columns, effort
        self.deadline = None if effort.time_limit is None else time.monotonic() + effort.time_limit
        self.constraints = [LinearConstraint(columns.equal, columns.right, columns.right)]
        self.constraints += [self._at_most(row, most) for row, most in limits(programme)]

    def minimise_scaled(self, allowed: np.ndarray) -> _ScaledSolution | None:
        """Return what `minimise` does, for costs scaled so that the largest is `LARGEST_COST`."""
        dearest = float(self.columns.costs[allowed].max())
        scale = LARGEST_COST / dearest if dearest > 0 else 1.0
        costs = np.where(allowed, self.columns.costs, 0) * scale
        result = self.minimise(costs, allowed)
        if result is None:
            return None
        chosen, lowest = result
        return _ScaledSolution(chosen, lowest, scale, costs, allowed)

    def minimise(
        self, costs: np.ndarray, allowed: np.ndarray, *more: Any
    ) -> tuple[np.ndarray, float] | None:
        """Return the choice of least `costs` and a lower bound; None if no choice keeps the limits.

        If HiGHS returns a choice slightly beyond a limit, that choice is excluded and it is called
        again.

        Parameters
        ----------
        allowed : (N,) bool, columns that may be chosen
        more : further constraints
        """
        from scipy.optimize import Bounds, milp

        n = len(self.programme.costs)
        constraints = [*self.constraints, *more]
        binary = np.arange(len(costs)) < n
        while True:
            options: dict[str, float] = {"mip_rel_gap": self.effort.gap}
            if self.deadline is not None:
                options["time_limit"] = max(self.deadline - time.monotonic(), 0.0)
            with _silence():
                result = milp(
                    costs,
                    integrality=binary,
                    bounds=Bounds(0, allowed),
                    constraints=constraints,
                    options=options,
                )
            if result.x is None:
                self._raise_unless_infeasible(result)
                return None
            chosen = np.flatnonzero(result.x[:n] > 0.5)
            if self.programme.keeps(chosen):
                lowest = result.mip_dual_bound
                if lowest is None or not np.isfinite(lowest):
                    lowest = 0.0  # no cost is negative
                return chosen, float(lowest)
            excluded = np.bincount(chosen, minlength=n)
            constraints.append(self._at_most(excluded, len(chosen) - 1))

    def smallest(self, costs: np.ndarray, allowed: np.ndarray, total: float) -> np.ndarray | None:
        """Return the smallest choice with a cost of at most `total`; None if the time runs out.

        Ties between choices of one size are broken by a term that is smaller than any difference of
        sizes. It is the position of an option in its group, times a weight that grows with the
        group. The weights have irrational parts, so that no two sums are equal.
        """
        from scipy.optimize import LinearConstraint

        programme = self.programme
        size, _ = programme.above_least(programme.size)
        position = np.arange(len(size)) - programme.starts()[programme.groups]
        golden = (5**0.5 - 1) / 2
        tie_break = position * (1 + programme.groups + programme.groups * golden % 1)
        most = np.maximum.reduceat(tie_break, programme.starts()).sum()
        objective = np.zeros(len(costs))
        # Sizes differ by at least 1, and the second term is below 1/2.
        objective[: len(size)] = size / max(np.gcd.reduce(size), 1) + tie_break / (2 * most + 1)
        not_dearer = LinearConstraint(costs, -np.inf, total * (1 + EQUAL / 10))
        try:
            result = self.minimise(objective, allowed, not_dearer)
        except SqError:
            return None
        if result is None:
            return None
        chosen, _ = result
        return chosen

    def _at_most(self, row: np.ndarray, most: float) -> Any:
        from scipy.optimize import LinearConstraint

        products = len(self.columns.costs) - len(row)
        return LinearConstraint(np.pad(row, (0, products)), -np.inf, most)

    def _raise_unless_infeasible(self, result: Any) -> None:
        """Raise an `SqError` unless HiGHS has proven that there is no choice."""
        time_limit_reached, infeasible = 1, 2  # status codes of scipy
        if result.status == time_limit_reached:
            raise SqError(
                f"allocation.time_limit={self.effort.time_limit:g} seconds: no choice of bits was "
                "found; allow more, or null"
            )
        if result.status != infeasible:
            raise SqError(
                f"no choice of bits was found: {' '.join(result.message.split())}; other bounds "
                "may help"
            )


@contextmanager
def _silence() -> Iterator[None]:
    """Discard what C code prints to standard output: HiGHS 1.12 prints debugging lines there."""
    try:
        flush = ctypes.CDLL(None).fflush
        stdout = os.dup(1)
    except (OSError, TypeError, AttributeError):  # no C library, or no standard output
        yield
        return
    sys.stdout.flush()
    flush(None)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 1)
    try:
        yield
    finally:
        flush(None)
        os.dup2(stdout, 1)
        os.close(stdout)
