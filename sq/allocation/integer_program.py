"""An integer programme as plain data: choose one option in each group at the least total cost.

    min sum_k c_k x_k   so that   sum of x over each group = 1,
                                  sum_k u_rk x_k <= L_r for each limit r,   x in {0, 1}

The costs may also have a quadratic part, x^T P x / 2. `sq/allocation/milp.py` solves programmes
without that part, `sq/allocation/quadratic.py` those with it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

EQUAL = 1e-9  # share of the cost up to which two choices cost the same
EXACT = 1e-12  # share of a limit that may be lost to rounding


@dataclass(frozen=True)
class Programme:
    """The options of all groups in one row, group by group, with their costs and resources.

    A choice is one index into that row for each group, in the order of the groups. Its cost is the
    sum of its `costs`, plus half of the sum of `pairs` over all pairs of its states.
    """

    costs: np.ndarray  # (n,)
    groups: np.ndarray  # (n,) int: 0 .. G - 1, ascending, none missing
    size: np.ndarray  # (n,) int: of choices of equal cost, the one of least total size is taken
    uses: dict[str, np.ndarray] = field(default_factory=dict)  # (n,) int, or float, by resource
    limits: dict[str, float] = field(default_factory=dict)  # of the total use, by resource
    # (n,): the row of `pairs` of each option; options of one group may share it
    states: np.ndarray = field(default_factory=lambda: np.zeros(0, int))
    pairs: np.ndarray | None = None  # (m, m) symmetric, 0 within a group
    # (m, m): `pairs` with blocks within groups that make it positive semidefinite, if known
    gram: np.ndarray | None = None

    def starts(self) -> np.ndarray:
        """Return the index of the first option of each group."""
        return np.flatnonzero(np.diff(self.groups, prepend=-1))

    def above_least(self, values: np.ndarray) -> tuple[np.ndarray, float]:
        """Return each option's value minus the least of its group, and the total of these least."""
        least = np.minimum.reduceat(values, self.starts())
        return values - least[self.groups], least.sum().item()

    def reach(self, resource: str) -> tuple[float, float]:
        """Return the least and the most that any choice uses of `resource`."""
        uses, starts = self.uses[resource], self.starts()
        least = np.minimum.reduceat(uses, starts)
        most = np.maximum.reduceat(uses, starts)
        return least.sum().item(), most.sum().item()

    def cost(self, chosen: np.ndarray) -> float:
        """Return the cost of a choice."""
        total = float(self.costs[chosen].sum())
        if self.pairs is not None:
            states = self.states[chosen]
            total += float(self.pairs[np.ix_(states, states)].sum()) / 2
        return total

    def keeps(self, chosen: np.ndarray) -> bool:
        """Return whether a choice is within all limits."""
        return all(
            self.uses[name][chosen].sum() <= ceiling(limit) for name, limit in self.limits.items()
        )


@dataclass(frozen=True)
class Effort:
    """How long to search for the least cost."""

    gap: float = 0.0  # share of the cost at which the search may stop; 0 proves the optimum
    time_limit: float | None = None  # seconds; None is no limit
    products: int = 0  # of two layers' options, up to which quadratic costs are solved exactly
    steps: int = 0  # of the search for a lower bound of quadratic costs, at most


@dataclass(frozen=True)
class Solution:
    """A choice, its cost, and a lower bound of the cost of all choices."""

    chosen: np.ndarray  # (G,) int
    cost: float
    bound: float
    method: str

    @property
    def gap(self) -> float:
        """Return by which share of the cost it may be above the least."""
        difference = self.cost - self.bound
        if difference <= EQUAL * abs(self.cost):
            return 0.0
        return difference / max(abs(self.cost), np.finfo(float).tiny)


def ceiling(limit: float) -> float:
    """Return `limit` plus the rounding error it may have as a computed product."""
    return limit + EXACT * abs(limit)
