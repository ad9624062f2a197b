"""A lower bound of quadratic costs: shares of every pair's costs are moved to its two layers until no more is gained.

For any numbers m the cost of a choice x is, with g < h over groups and P_gh[k, l] what their options cost together,

    sum_g (c_g[x_g] + sum_h m_gh[x_g]) + sum_{g<h} (P_gh[x_g, x_h] - m_gh[x_g] - m_hg[x_h]).

The least of the first sum within the limits (an integer programme without pairs) plus the least of each pair apart is
therefore a lower bound. Its maximum over m, with limits taken into the costs at prices of 0 or more, is the dual of the
linearisation's relaxation (Adams and Sherali's, `sq/quadratic.py`): it is as good, without that many columns. It
is found by L-BFGS on a smoothed bound, minima replaced by -T log sum exp(-z / T), at falling temperatures T. What is
reported is the bound itself at the m where that ends, so it holds however far the search went.

Source
------
Wainwright, Jaakkola and Willsky 2005, MAP estimation via agreement on trees (the decomposition); smoothing after
Johnson, Malioutov and Willsky 2007, Lagrangian relaxation for MAP estimation. Limits in the same dual are ours.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from sq.programme import Programme, ceiling

TEMPERATURES = (1e-1, 1e-2, 1e-3, 1e-4)  # of the spread of costs


def relax(programme: Programme, steps: int) -> tuple[Programme, float]:
    """Return a programme without pairs, and a number: its least cost plus that is a lower bound of `programme`'s.

    Parameters
    ----------
    steps : of L-BFGS, at each temperature; none moves nothing
    """
    from scipy.optimize import minimize

    dual = _Dual(programme)
    x = np.zeros(dual.shares + len(dual.prices))
    bounds = [(None, None)] * dual.shares + [(0, None)] * len(dual.prices)
    for temperature in TEMPERATURES if steps and dual.shares else ():
        options = {"maxiter": steps, "maxfun": 2 * steps}
        x = minimize(dual.smoothed, x, (temperature,), "L-BFGS-B", jac=True, bounds=bounds, options=options).x
    moved = dual.moved(x)
    rest = dual.pairs - moved[:, 0, :, None] - moved[:, 1, None, :]
    least = rest.reshape(len(rest), -1).min(1, initial=np.inf).sum()
    costs = programme.costs + dual.gather(moved)[programme.states] * dual.spread
    return replace(programme, costs=costs, pairs=None), float(least) * dual.spread


class _Dual:
    """The bound as a function of what is moved and of the limits' prices; costs in units of their spread."""

    def __init__(self, programme: Programme):
        assert programme.pairs is not None
        group = np.zeros(len(programme.pairs), dtype=int)
        group[programme.states] = programme.groups
        first = np.flatnonzero(np.diff(group, prepend=-1))
        place = np.arange(len(group)) - first[group]
        count, most = len(first), int(place.max()) + 1
        blocks = np.full((count, count, most, most), np.inf)  # states that a group does not have cost infinity
        blocks[group[:, None], group, place[:, None], place] = programme.pairs
        left, right = np.nonzero(np.triu(np.where(np.isfinite(blocks), blocks != 0, False).any((2, 3)), 1))
        above, _ = programme.above_least(programme.costs)
        self.pairs = blocks[left, right]  # (E, K, K)
        finite = self.pairs[np.isfinite(self.pairs)]
        self.spread = max(float(above.max()), float(np.abs(finite).max(initial=0)), np.finfo(float).tiny)
        self.pairs = self.pairs / self.spread
        self.costs, self.starts, self.groups = programme.costs / self.spread, programme.starts(), programme.groups
        self.states, self.cell = programme.states, (group, place)
        self.ends, self.count = (left, right), count
        self.shape = (len(left), 2, most)
        self.shares = int(np.prod(self.shape))
        self.prices, self.rooms = self._priced(programme)

    def _priced(self, programme: Programme) -> tuple[np.ndarray, np.ndarray]:
        """Return uses (R, n) and limits (R,) from the least, uses of each resource 1 at most."""
        uses, rooms = [np.zeros((0, len(self.groups)))], []
        for name, limit in programme.limits.items():
            use, least = programme.above_least(programme.uses[name].astype(float))
            if use.max() > 0:
                uses.append(use[None] / use.max())
                rooms.append((ceiling(limit) - least) / use.max())
        return np.concatenate(uses), np.array(rooms)

    def moved(self, x: np.ndarray) -> np.ndarray:
        """Return what is moved (E, 2, K): from each pair to its first and its second group, by state."""
        return x[: self.shares].reshape(self.shape)

    def gather(self, moved: np.ndarray) -> np.ndarray:
        """Return what is moved to each state, (m,)."""
        total = np.zeros((self.count, self.shape[2]))
        for side, groups in enumerate(self.ends):
            np.add.at(total, groups, moved[:, side])
        return total[self.cell]

    def smoothed(self, x: np.ndarray, temperature: float) -> tuple[float, np.ndarray]:
        """Return the negative of the smoothed bound, and its gradient."""
        moved, prices = self.moved(x), x[self.shares :]
        own = self.costs + self.gather(moved)[self.states] + prices @ self.prices
        rest = (self.pairs - moved[:, 0, :, None] - moved[:, 1, None, :]).reshape(len(self.pairs), -1)
        least = np.minimum.reduceat(own, self.starts)
        weight = np.exp((least[self.groups] - own) / temperature)
        total = np.add.reduceat(weight, self.starts)
        weight /= total[self.groups]  # (n,) how much of each option the smoothed minimum of its group holds
        low = rest.min(1, keepdims=True)
        shares = np.exp((low - rest) / temperature)
        sums = shares.sum(1, keepdims=True)
        shares = (shares / sums).reshape(self.pairs.shape)
        value = least.sum() + low.sum() - temperature * (np.log(total).sum() + np.log(sums).sum())
        states = np.zeros((self.count, self.shape[2]))
        np.add.at(states, tuple(axis[self.states] for axis in self.cell), weight)
        gradient = np.stack([states[self.ends[0]] - shares.sum(2), states[self.ends[1]] - shares.sum(1)], 1)
        priced = self.prices @ weight - self.rooms
        return float(prices @ self.rooms - value), -np.concatenate([gradient.ravel(), priced])
