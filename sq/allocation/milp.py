"""Programmes handed to HiGHS (scipy's `milp`), such that its tolerances do not show in what comes back.

HiGHS computes in floating point: it takes constraints as kept within 1e-6 and stops at a gap of
1e-6, both absolute. So uses are counted from the least option of each group, in units of their
greatest common divisor, and what it finds is checked in integers; costs are counted from the
cheapest and scaled, anew as soon as a total is known that dearer options would exceed.

Among choices of equal cost (to a share of 1e-9) a second programme takes the one of least `size`,
and among those the one that spends on the first groups. So the answer does not hang on the order in
which HiGHS looks at them.
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

SPREAD = 1e4  # dearest scaled cost, of which a gap of 1e-6 is 1e-10
ROUNDING = 1e-15  # share of a sum that the order of its terms may change
FINER = 100.0  # costs are scaled anew if that resolves them so many times better


@dataclass(frozen=True)
class Columns:
    """What HiGHS decides, each between 0 and 1: every option of the programme, then what stands for its pairs."""

    costs: np.ndarray  # (N,), at least 0
    constant: float  # what the costs leave out
    equal: Any  # (rows, N) sparse
    right: np.ndarray  # (rows,): equal @ x = right


def columns(programme: Programme) -> Columns:
    """Return the columns of a programme, its pairs left out."""
    from scipy import sparse

    n, count = len(programme.costs), int(programme.groups[-1]) + 1
    costs, constant = programme.above_least(programme.costs)
    one = sparse.csr_array((np.ones(n), (programme.groups, np.arange(n))), shape=(count, n))
    return Columns(costs, constant, one, np.ones(count))


def limits(programme: Programme) -> list[tuple[np.ndarray, float]]:
    """Return (row, most) for each limit that can bind: row @ x <= most, in units in which whole uses stay whole."""
    found = []
    for name, limit in programme.limits.items():
        use, least = programme.above_least(programme.uses[name])
        whole = np.issubdtype(use.dtype, np.integer)
        unit = np.gcd.reduce(use) if whole else use.max()
        if unit > 0:
            room = (ceiling(limit) - least) / unit
            found.append((use / unit, float(np.floor(room)) if whole else room))
    return found


def solve(
    programme: Programme, effort: Effort, made: Columns | None = None, method: str = "ilp"
) -> Solution | None:
    """Return the choice of least cost within the limits, None if no choice keeps to all of them.

    Parameters
    ----------
    programme : without pairs, unless `made` stands for them
    made : columns that cost what the programme does; by default its options alone

    Raises
    ------
    SqError : the time ran out before any choice was found
    """
    assert made is not None or programme.pairs is None
    made = made or columns(programme)
    calls = _Calls(programme, made, effort)
    best = calls.scaled(np.ones(len(made.costs), dtype=bool))
    if best is None:
        return None
    while True:
        chosen = best.chosen
        total = programme.cost(chosen) - made.constant
        # none is negative: what exceeds the total is part of no better one
        tighter = made.costs <= total * (1 + EQUAL)
        if total <= 0 or made.costs[tighter].max() * FINER >= made.costs[best.allowed].max():
            break
        try:
            finer = calls.scaled(tighter)
        except SqError:  # the time has run out, with a choice in hand
            break
        if finer is None:
            break
        best = finer
    smaller = calls.smallest(best.costs, best.allowed, total * best.scale)
    cost = programme.cost(chosen)
    if smaller is not None and programme.cost(smaller) <= cost + EQUAL * abs(
        total
    ) + ROUNDING * abs(cost):
        chosen, cost = smaller, programme.cost(smaller)
    return Solution(chosen, cost, min(made.constant + best.lowest / best.scale, cost), method)


@dataclass(frozen=True)
class _Found:
    """The least of costs that were multiplied by `scale`."""

    chosen: np.ndarray  # (G,) int
    lowest: float  # that no choice costs less than, scaled
    scale: float
    costs: np.ndarray  # (N,), scaled
    allowed: np.ndarray  # (N,) bool, columns that were to choose from


class _Calls:
    """Calls of HiGHS on one programme, with one limit of time over all of them."""

    def __init__(self, programme: Programme, made: Columns, effort: Effort):
        from scipy.optimize import LinearConstraint

        self.programme, self.made, self.effort = programme, made, effort
        self.deadline = None if effort.time_limit is None else time.monotonic() + effort.time_limit
        self.rows = [LinearConstraint(made.equal, made.right, made.right)]
        self.rows += [self._at_most(row, most) for row, most in limits(programme)]

    def scaled(self, allowed: np.ndarray) -> _Found | None:
        """Return what `least` does of the costs of `allowed` columns, scaled to `SPREAD`."""
        dearest = float(self.made.costs[allowed].max())
        scale = SPREAD / dearest if dearest > 0 else 1.0
        costs = np.where(allowed, self.made.costs, 0) * scale
        found = self.least(costs, allowed)
        return found and _Found(*found, scale, costs, allowed)

    def least(
        self, costs: np.ndarray, allowed: np.ndarray, *more: Any
    ) -> tuple[np.ndarray, float] | None:
        """Return the choice of least `costs` and a lower bound of these; None if no choice keeps to the limits.

        Where HiGHS takes a choice a little beyond a limit, that one is barred, and it looks again.

        Parameters
        ----------
        allowed : (N,) bool, columns that may be chosen
        more : further constraints
        """
        from scipy.optimize import Bounds, milp

        n, rows = len(self.programme.costs), [*self.rows, *more]
        binary = np.arange(len(costs)) < n
        while True:
            options: dict[str, float] = {"mip_rel_gap": self.effort.gap}
            if self.deadline is not None:
                options["time_limit"] = max(self.deadline - time.monotonic(), 0.0)
            with _silence():
                found = milp(
                    costs,
                    integrality=binary,
                    bounds=Bounds(0, allowed),
                    constraints=rows,
                    options=options,
                )
            if found.x is None:
                self._explain(found)
                return None
            chosen = np.flatnonzero(found.x[:n] > 0.5)
            if self.programme.keeps(chosen):
                lowest = found.mip_dual_bound
                return chosen, float(lowest) if lowest is not None and np.isfinite(lowest) else 0.0
            rows.append(self._at_most(np.bincount(chosen, minlength=n), len(chosen) - 1))

    def smallest(self, costs: np.ndarray, allowed: np.ndarray, total: float) -> np.ndarray | None:
        """Return the smallest choice of a cost of at most `total`; None if the time does not suffice for one.

        What tells choices of one size apart adds up to less than sizes differ by: the place of an
        option in its group, times a weight that grows with the group and of which no two sums are
        alike.
        """
        from scipy.optimize import LinearConstraint

        programme = self.programme
        size = programme.above_least(programme.size)[0]
        place = np.arange(len(size)) - programme.starts()[programme.groups]
        golden = (5**0.5 - 1) / 2
        nudge = place * (1 + programme.groups + programme.groups * golden % 1)
        most = np.maximum.reduceat(nudge, programme.starts()).sum()
        objective = np.zeros(len(costs))
        objective[: len(size)] = size / max(np.gcd.reduce(size), 1) + nudge / (2 * most + 1)
        try:
            found = self.least(
                objective, allowed, LinearConstraint(costs, -np.inf, total * (1 + EQUAL / 10))
            )
        except SqError:
            return None
        return found and found[0]

    def _at_most(self, row: np.ndarray, most: float) -> Any:
        from scipy.optimize import LinearConstraint

        return LinearConstraint(np.pad(row, (0, len(self.made.costs) - len(row))), -np.inf, most)

    def _explain(self, found: Any) -> None:
        """Raise an `SqError` unless it is proven that there is no choice."""
        if found.status == 1:
            seconds = f"{self.effort.time_limit:g} seconds"
            raise SqError(
                f"allocation.time_limit={seconds}: no choice of bits was found; allow more, or null"
            )
        if found.status != 2:
            raise SqError(
                f"no choice of bits was found: {' '.join(found.message.split())}; other bounds may help"
            )


@contextmanager
def _silence() -> Iterator[None]:
    """Keep what is printed in C from standard output: HiGHS 1.12 leaves lines of its own debugging there."""
    try:
        flush = ctypes.CDLL(None).fflush
        kept = os.dup(1)
    except (OSError, TypeError, AttributeError):  # no such library, no standard output
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
        os.dup2(kept, 1)
        os.close(kept)
