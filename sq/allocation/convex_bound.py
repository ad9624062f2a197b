"""Lower bounds of quadratic costs, by a convex function that equals the costs for every choice.

For a choice x, x_k^2 = x_k, and x_k x_l = 0 for two options of one group. So any D that is 0
between groups can be added to the pairs P:

    c^T x + 1/2 x^T P x  =  (c - diag(D) / 2)^T x + 1/2 x^T Q x,   Q = P + D.

If Q has no negative eigenvalue, the right side is convex, and its tangent at any point y is a lower
bound everywhere:

    (c - diag(D) / 2 + Q y)^T x - 1/2 y^T Q y.

The least of that within the limits is an integer programme without pairs. y is the minimum of the
right side over mixtures of options, found by Frank-Wolfe steps. The bound holds for any y.

If P, and a part of c, come from a sum of squares, 1/2 ||sum_k x_k v_k||^2, a D is known: the
products v_k . v_l within groups, which make Q the Gram matrix. The rest of c is not part of that
sum. With y = 0 the bound is the least of this rest, so it is not below 0 if there is no rest.

Otherwise D should be as small as P allows. Errors of two widths of one layer are alike. So within a
group D_kl = w s_k s_l (a + (1 - a) [k = l]), where s_k^2 is twice the cost c_k plus a share of the
size of its pairs. Of a grid of values for a, the one is taken that needs the least w for a Q
without a negative eigenvalue.

Source
------
Hammer and Rubin 1970 for the diagonal (Billionnet and Elloumi 2007 for choosing it); blocks within
groups are ours.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from sq.allocation import milp
from sq.allocation.integer_program import Programme

CORRELATIONS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)  # values tried for a
# Multiples of the mean size of a state's pairs that are added to s_k^2; the best one is taken.
FLOORS = (1.0, 10.0, 100.0)
CLOSE = 1e-4  # the steps stop when more of them could raise the bound by this share at most


@dataclass(frozen=True)
class Tangent:
    """Costs without pairs, whose least total within the limits plus `constant` is a lower bound."""

    costs: np.ndarray  # (n,)
    constant: float
    point: np.ndarray  # (n,): where it touches, the share of each option
    bound: float  # the least over mixtures of options, which is a lower bound as well


def relax(programme: Programme, steps: int, deadline: float = math.inf) -> Tangent:
    """Return the best of several tangents, each after at most `steps` Frank-Wolfe steps.

    Parameters
    ----------
    programme : with pairs, and with a choice that keeps its limits
    steps : fewer are made if they no longer help
    deadline : of `time.monotonic`, after which no step is begun
    """
    assert programme.pairs is not None
    tangents = []
    for floor in FLOORS:
        Q = programme.pairs + _blocks(programme, floor)
        tangents.append(_frank_wolfe(programme, Q, steps, deadline))
    return max(tangents, key=lambda tangent: tangent.bound)


def of_squares(programme: Programme, steps: int, deadline: float = math.inf) -> Tangent:
    """Return the better of the tangents at 0 and after Frank-Wolfe steps, with `programme.gram`.

    Parameters as in `relax`.
    """
    Q = programme.gram
    assert Q is not None
    costs = programme.costs - Q.diagonal()[programme.states] / 2
    zero = np.zeros_like(costs)
    bound = float(costs @ _cheapest_mixture(programme, costs))
    at_zero = Tangent(costs, 0.0, zero, bound)
    descended = _frank_wolfe(programme, Q, steps, deadline)
    return max(at_zero, descended, key=lambda tangent: tangent.bound)


def _frank_wolfe(programme: Programme, Q: np.ndarray, steps: int, deadline: float) -> Tangent:
    """Return the tangent where the steps end."""
    states = programme.states
    costs = programme.costs - Q.diagonal()[states] / 2  # the diagonal of P is 0
    x = _cheapest_mixture(programme, costs)
    while True:
        y = np.bincount(states, x, len(Q))  # (m,)
        slope, constant = costs + (Q @ y)[states], -float(y @ Q @ y) / 2
        corner = _cheapest_mixture(programme, slope)
        bound, value = float(slope @ corner) + constant, float(slope @ x) + constant
        if steps == 0 or value - bound <= CLOSE * abs(bound) or time.monotonic() > deadline:
            return Tangent(slope, constant, x, bound)
        direction = np.bincount(states, corner - x, len(Q))
        curvature = float(direction @ Q @ direction)
        length = min((value - bound) / curvature, 1.0) if curvature > 0 else 1.0
        x = x + (corner - x) * length
        steps -= 1


def _blocks(programme: Programme, floor: float) -> np.ndarray:
    """Return D, (m, m)."""
    pairs = programme.pairs
    assert pairs is not None
    m = len(pairs)
    group = np.zeros(m, dtype=int)  # of each state
    group[programme.states] = programme.groups
    cost = np.full(m, np.inf)  # the least of each state's options
    np.minimum.at(cost, programme.states, np.abs(programme.costs))
    scale = np.sqrt(2 * cost + floor * np.abs(pairs).mean(1) + np.finfo(float).tiny)  # s
    same_group = group[:, None] == group
    scaled_pairs = pairs / scale[:, None] / scale
    best, least_weight = np.zeros_like(pairs), np.inf
    for correlation in CORRELATIONS:
        block = np.where(same_group, correlation, 0.0) + (1 - correlation) * np.eye(m)
        values, vectors = np.linalg.eigh(block)
        inverse_root = (vectors / np.sqrt(values)) @ vectors.T
        lowest = float(np.linalg.eigvalsh(inverse_root @ scaled_pairs @ inverse_root)[0])
        weight = max(-lowest, 0.0) * (1 + 1e-9)  # a margin for the rounding of the eigenvalue
        if weight < least_weight:
            best, least_weight = weight * block, weight
    return best * scale[:, None] * scale


def _cheapest_mixture(programme: Programme, costs: np.ndarray) -> np.ndarray:
    """Return the shares of options (n,) of least cost, if options of a group may be mixed."""
    from scipy.optimize import linprog

    columns = milp.option_columns(replace(programme, costs=costs, pairs=None))
    limits = milp.limits(programme)
    within_limits: dict[str, Any] = {}
    if limits:
        rows, most = zip(*limits, strict=True)
        within_limits = {"A_ub": np.array(rows), "b_ub": most}
    scale = max(float(columns.costs.max()), np.finfo(float).tiny)
    result = linprog(
        columns.costs / scale,
        A_eq=columns.equal,
        b_eq=columns.right,
        bounds=(0, 1),
        **within_limits,
    )
    assert result.x is not None, result.message
    return result.x
