"""A lower bound of quadratic costs: the least of a convex function that agrees with them on every choice.

For a choice x, x_k^2 = x_k, and x_k x_l = 0 for two options of one group. So any D that is 0
between groups may be added to the pairs P:

    c^T x + 1/2 x^T P x  =  (c - diag(D) / 2)^T x + 1/2 x^T Q x,   Q = P + D.

If Q has no negative eigenvalue, the right side is convex, and its tangent at any point y is a lower
bound everywhere:

    (c - diag(D) / 2 + Q y)^T x - 1/2 y^T Q y,

whose least within the limits is an integer programme without pairs. y is where the right side is
least over mixtures of options, found by Frank-Wolfe steps; whatever y they end at, the bound holds.

Where P, and c in part, come of a sum of squares, 1/2 ||sum_k x_k v_k||^2, a D is known: the
products v_k . v_l within groups, which make Q the Gram matrix. What is left of c is what is no part
of that sum, and with y = 0 the least of that is the bound: not below 0 where none of it is.

Elsewhere D costs least where it is as small as P allows. Errors of two widths of one layer are
alike, so within a group D_kl = w s_k s_l (a + (1 - a) [k = l]), with s_k^2 the 2 c_k of an error
that costs c_k and something for what its pairs cost: of a grid of a, the one that needs the least w
to leave Q without a negative eigenvalue.

Source
------
Hammer and Rubin 1970 for the diagonal (Billionnet and Elloumi 2007 for choosing it); blocks within
groups are ours.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace

import numpy as np

from sq.allocation import milp
from sq.allocation.integer_program import Programme

ALIKE = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)  # what a may be
# of the mean size of a state's pairs, added to s_k^2: the best of these is taken
FLOORS = (1.0, 10.0, 100.0)
CLOSE = 1e-4  # share of the bound that more steps could add, at which they stop


@dataclass(frozen=True)
class Tangent:
    """Costs without pairs, of which the least within the limits plus `constant` is a lower bound."""

    costs: np.ndarray  # (n,)
    constant: float
    point: np.ndarray  # (n,): where it touches, how much of each option
    bound: float  # the least over mixtures, which no choice is below either


def relax(programme: Programme, steps: int, deadline: float = math.inf) -> Tangent:
    """Return the best of the tangents where `steps` Frank-Wolfe steps end, fewer if they get no further.

    Parameters
    ----------
    programme : with pairs, and some choice within its limits
    deadline : of `time.monotonic`, after which no step is begun
    """
    assert programme.pairs is not None
    found = [
        _descend(programme, programme.pairs + _blocks(programme, floor), steps, deadline)
        for floor in FLOORS
    ]
    return max(found, key=lambda each: each.bound)


def of_squares(programme: Programme, steps: int, deadline: float = math.inf) -> Tangent:
    """Return the better of the tangents at 0 and where Frank-Wolfe steps end, by `programme.gram`; see `relax`."""
    Q = programme.gram
    assert Q is not None
    costs = programme.costs - Q.diagonal()[programme.states] / 2
    zero = np.zeros_like(costs)
    lowest = Tangent(costs, 0.0, zero, float(costs @ _mixture(programme, costs)))
    return max(lowest, _descend(programme, Q, steps, deadline), key=lambda each: each.bound)


def _descend(programme: Programme, Q: np.ndarray, steps: int, deadline: float) -> Tangent:
    states = programme.states
    costs = programme.costs - Q.diagonal()[states] / 2  # the diagonal of P is 0
    x = _mixture(programme, costs)
    while True:
        y = np.bincount(states, x, len(Q))
        slope, constant = costs + (Q @ y)[states], -float(y @ Q @ y) / 2
        corner = _mixture(programme, slope)
        bound, value = float(slope @ corner) + constant, float(slope @ x) + constant
        if steps == 0 or value - bound <= CLOSE * abs(bound) or time.monotonic() > deadline:
            return Tangent(slope, constant, x, bound)
        change = np.bincount(states, corner - x, len(Q))
        bend = float(change @ Q @ change)
        x = x + (corner - x) * (min((value - bound) / bend, 1.0) if bend > 0 else 1.0)
        steps -= 1


def _blocks(programme: Programme, floor: float) -> np.ndarray:
    """Return D, (m, m)."""
    pairs = programme.pairs
    assert pairs is not None
    size = len(pairs)
    group = np.zeros(size, dtype=int)
    group[programme.states] = programme.groups
    cost = np.full(size, np.inf)
    np.minimum.at(cost, programme.states, np.abs(programme.costs))
    scale = np.sqrt(2 * cost + floor * np.abs(pairs).mean(1) + np.finfo(float).tiny)
    same = group[:, None] == group
    P = pairs / scale[:, None] / scale
    best, least = np.zeros_like(pairs), np.inf
    for alike in ALIKE:
        block = np.where(same, alike, 0.0) + (1 - alike) * np.eye(size)
        values, vectors = np.linalg.eigh(block)
        root = (vectors / np.sqrt(values)) @ vectors.T
        # rounding of the eigenvalue
        weight = max(-float(np.linalg.eigvalsh(root @ P @ root)[0]), 0.0) * (1 + 1e-9)
        if weight < least:
            best, least = weight * block, weight
    return best * scale[:, None] * scale


def _mixture(programme: Programme, costs: np.ndarray) -> np.ndarray:
    """Return what costs least within the limits where options of a group may be mixed, (n,)."""
    from scipy.optimize import linprog

    rows = milp.limits(programme)
    made = milp.columns(replace(programme, costs=costs, pairs=None))
    bounded = (
        {"A_ub": np.array([row for row, _ in rows]), "b_ub": [most for _, most in rows]}
        if rows
        else {}
    )
    scale = max(float(made.costs.max()), np.finfo(float).tiny)
    found = linprog(made.costs / scale, A_eq=made.equal, b_eq=made.right, bounds=(0, 1), **bounded)
    assert found.x is not None, found.message
    return found.x
