"""Choose one option in each group at the least total cost within every bound: an integer programme, as plain data.

    min sum_k c_k x_k   so that   sum of x over each group = 1,   sum_k u_rk x_k <= L_r for each
    bound r,   x in {0, 1}

Costs may have a quadratic part as well, half of x^T P x. Who solves what: `sq/allocation/milp.py`
the programme without that part, `sq/allocation/quadratic.py` the whole of it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

EQUAL = 1e-9  # share of the cost up to which two choices cost the same
EXACT = 1e-12  # share of a limit that rounding may have taken from it


@dataclass(frozen=True)
class Programme:
    """Options of all groups in one row, group after group, with what each costs and uses.

    A choice is one index into that row for each group, in their order. Its cost is the sum of its
    `costs`, and half of `pairs` over all pairs of its states.
    """

    costs: np.ndarray  # (n,)
    groups: np.ndarray  # (n,) int: 0 .. G - 1, ascending, none left out
    size: np.ndarray  # (n,) int: the least total is preferred among choices of equal cost
    uses: dict[str, np.ndarray] = field(default_factory=dict)  # (n,) int, or float, by resource
    limits: dict[str, float] = field(default_factory=dict)  # of the total use, by resource
    # (n,): rows of `pairs`, shared within a group
    states: np.ndarray = field(default_factory=lambda: np.zeros(0, int))
    pairs: np.ndarray | None = None  # (m, m) symmetric, 0 within a group
    gram: np.ndarray | None = (
        # (m, m): `pairs` with blocks within groups that leave no negative eigenvalue, if known
        None
    )

    def starts(self) -> np.ndarray:
        """Return the index of the first option of each group."""
        return np.flatnonzero(np.diff(self.groups, prepend=-1))

    def above_least(self, values: np.ndarray) -> tuple[np.ndarray, float]:
        """Return by how much each option's value exceeds the least of its group, and the total of these least."""
        least = np.minimum.reduceat(values, self.starts())
        return values - least[self.groups], least.sum().item()

    def reach(self, resource: str) -> tuple[float, float]:
        """Return the least and the most that any choice uses of `resource`."""
        uses, starts = self.uses[resource], self.starts()
        return np.minimum.reduceat(uses, starts).sum().item(), np.maximum.reduceat(
            uses, starts
        ).sum().item()

    def cost(self, chosen: np.ndarray) -> float:
        """Return what a choice costs."""
        total = float(self.costs[chosen].sum())
        if self.pairs is not None:
            states = self.states[chosen]
            total += float(self.pairs[np.ix_(states, states)].sum()) / 2
        return total

    def keeps(self, chosen: np.ndarray) -> bool:
        """Tell whether a choice is within all limits."""
        return all(
            self.uses[name][chosen].sum() <= ceiling(limit) for name, limit in self.limits.items()
        )


@dataclass(frozen=True)
class Effort:
    """How hard to look for the least cost."""

    # share of the cost at which the search may stop; 0 goes on until the least is proven
    gap: float = 0.0
    time_limit: float | None = None  # seconds; None is no limit
    products: int = 0  # of two layers' options, up to which quadratic costs are solved exactly
    steps: int = 0  # of the search for a lower bound of quadratic costs, at most


@dataclass(frozen=True)
class Solution:
    """A choice, its cost, and a number that no choice costs less than."""

    chosen: np.ndarray  # (G,) int
    cost: float
    bound: float
    method: str

    @property
    def gap(self) -> float:
        """Return the share of the cost by which it may be above the least."""
        room = self.cost - self.bound
        return (
            0.0
            if room <= EQUAL * abs(self.cost)
            else room / max(abs(self.cost), np.finfo(float).tiny)
        )


def ceiling(limit: float) -> float:
    """Return `limit` with room for the rounding of the product it may have been computed as."""
    return limit + EXACT * abs(limit)
