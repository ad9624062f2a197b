"""Programmes with quadratic costs: linearised if there are few products, else local search.

The local search reports a proven gap, by the lower bounds of `sq/allocation/convex_bound.py`.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from functools import partial

import numpy as np

from sq.allocation import convex_bound, milp
from sq.allocation.convex_bound import Tangent
from sq.allocation.integer_program import EQUAL, Effort, Programme, Solution, ceiling
from sq.errors import SqError

START_GAP = 1e-3  # gap of a choice that is good enough to start a local search from


def solve(programme: Programme, effort: Effort) -> Solution | None:
    """Return the best choice found and a lower bound; None if no choice keeps the limits.

    Without pairs this is the integer programme. With at most `effort.products` products of states
    it is the linearised one, which is exact. With more, or if the time runs out for that, it is
    `search`.

    Raises
    ------
    SqError : the time ran out before any choice was found
    """
    if programme.pairs is None or not programme.pairs.any():
        return milp.solve(replace(programme, pairs=None), effort)
    if products(programme) > effort.products:
        return search(programme, effort)
    try:
        exact = milp.solve(programme, effort, linearise(programme), "linearised ilp")
    except SqError:
        return search(programme, effort)
    if exact is None or exact.gap <= effort.gap:
        return exact
    searched = search(programme, effort)
    assert searched is not None
    best = min(exact, searched, key=lambda solution: solution.cost)
    return replace(best, bound=max(exact.bound, searched.bound))


def products(programme: Programme) -> int:
    """Return the number of products of two states, over all groups that have costs in common."""
    return sum(block.size for _, _, block in _blocks(programme))


def linearise(programme: Programme) -> milp.Columns:
    """Return columns with y_kl for the product x_k x_l, for all groups with costs in common.

    For the states of each two such groups, sum_l y_kl = x_k and sum_k y_kl = x_l. Then y is the
    product in every choice, and the relaxation is as tight as one of this size can be.

    Source
    ------
    Adams and Sherali 1986, A tight linearization and an algorithm for zero-one quadratic
    programming problems.
    """
    from scipy import sparse

    plain = milp.option_columns(programme)
    costs, constant = [plain.costs], plain.constant
    # The entries of the constraints sum y - x = 0: rows, columns and values.
    entries: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    row, column = 0, len(plain.costs)
    for first, second, block in _blocks(programme):
        constant += float(block.min())
        costs.append((block - block.min()).ravel())
        y = np.arange(column, column + block.size).reshape(block.shape)  # columns of the products
        sums = [*zip(first, y, strict=True), *zip(second, y.T, strict=True)]
        for state, products_of_state in sums:
            x = np.flatnonzero(programme.states == state)  # columns of the state's options
            values = np.concatenate([np.ones(len(products_of_state)), -np.ones(len(x))])
            columns = np.concatenate([products_of_state, x])
            entries.append((np.full(len(values), row), columns, values))
            row += 1
        column += block.size
    all_rows, all_columns, all_values = map(np.concatenate, zip(*entries, strict=True))
    product_rows = sparse.csr_array((all_values, (all_rows, all_columns)), shape=(row, column))
    padding = sparse.csr_array((len(plain.right), column - len(plain.costs)))
    option_rows = sparse.hstack([plain.equal, padding])
    equal = sparse.vstack([option_rows, product_rows], format="csr")
    right = np.concatenate([plain.right, np.zeros(row)])
    return milp.Columns(np.concatenate(costs), constant, equal, right)


def search(programme: Programme, effort: Effort) -> Solution | None:
    """Return the best of several local searches and the best bound; None if nothing keeps limits.

    The searches start from three choices: the best without pairs, the best by the tangent of the
    bound, and the nearest to the point where that touches. After that they start from the best
    choice for costs to which the pairs with the best choice so far are added, as long as that
    lowers the cost.

    Raises
    ------
    SqError : the time ran out before any choice was found
    """
    deadline = time.monotonic() + (math.inf if effort.time_limit is None else effort.time_limit)
    linear = replace(programme, pairs=None)
    first = milp.solve(linear, effort)
    if first is None:
        return None
    pairs = programme.pairs
    assert pairs is not None
    solve_linear = partial(_solve_linear, linear, effort, deadline)
    tangent = convex_bound.relax(programme, effort.steps, deadline)
    lowest = solve_linear(tangent.costs, gap=0.0)
    nearest = solve_linear(-tangent.point, gap=START_GAP)
    results = []
    for solution in (first, lowest, nearest):
        if solution is not None:
            result = improve(programme, solution.chosen)
            results.append(result)
    best = min(results, key=programme.cost)
    while time.monotonic() < deadline:
        with_best = pairs[:, programme.states[best]].sum(1)[programme.states]
        solution = solve_linear(programme.costs + with_best, gap=START_GAP)
        if solution is None:
            break
        result = improve(programme, solution.chosen)
        if programme.cost(result) >= programme.cost(best):
            break
        best = result
    bound = _lower_bound(tangent, lowest)
    if programme.gram is not None:
        tangent = convex_bound.of_squares(programme, effort.steps, deadline)
        bound = max(bound, _lower_bound(tangent, solve_linear(tangent.costs, gap=0.0)))
    cost = programme.cost(best)
    return Solution(best, cost, min(bound, cost), "local search")


def _solve_linear(
    linear: Programme, effort: Effort, deadline: float, costs: np.ndarray, *, gap: float
) -> Solution | None:
    """Return the best choice for other costs without pairs; None if the time runs out.

    It takes the time that is left, and at least a second.
    """
    seconds = None if effort.time_limit is None else max(deadline - time.monotonic(), 1.0)
    linear_effort = replace(effort, gap=max(effort.gap, gap), time_limit=seconds)
    with suppress(SqError):
        return milp.solve(replace(linear, costs=costs), linear_effort)
    return None


def _lower_bound(tangent: Tangent, lowest: Solution | None) -> float:
    """Return the bound by the choice of lowest cost on the tangent, or by the tangent alone."""
    return tangent.bound if lowest is None else lowest.bound + tangent.constant


def improve(programme: Programme, chosen: np.ndarray) -> np.ndarray:
    """Return `chosen` with one or two groups changed at a time until no such change helps.

    Parameters
    ----------
    chosen : (G,) int, a choice within the limits
    """
    chosen = chosen.copy()
    change = _best_change(programme, chosen)
    while change is not None:
        for option in change:
            chosen[programme.groups[option]] = option
        change = _best_change(programme, chosen)
    return chosen


def _best_change(programme: Programme, chosen: np.ndarray) -> tuple[int, int] | None:
    """Return the two options to choose that lower the cost most within the limits; None if none.

    With pairs P, e_k = c_k + sum over the chosen of P_k, and p and q the options chosen now in the
    groups of a and b, choosing a and b changes the cost by

        (e_a - e_p) + (e_b - e_q) + P_ab - P_aq - P_pb + P_pq.

    To change one group only, b is in the group of a; it is then returned first and overwritten.
    """
    groups, states, pairs = programme.groups, programme.states, programme.pairs
    assert pairs is not None
    replaced = chosen[groups]  # (n,): the option that choosing each one replaces, q for each b
    e = programme.costs + pairs[:, states[chosen]].sum(1)[states]
    single = e - e[replaced]  # (n,): change of the cost by each option alone
    more_use = []  # of each resource: change of its use by each option (n,), and what is left of it
    for name, limit in programme.limits.items():
        use = programme.uses[name]
        more_use.append((use - use[replaced], ceiling(limit) - use[chosen].sum()))
    best = None
    # Smaller changes are rounding errors.
    lowest = -EQUAL * max(abs(programme.cost(chosen)), float(np.abs(single).max()))
    for group, start in enumerate(programme.starts()):
        a = np.arange(start, start + np.count_nonzero(groups == group))  # (K,): its options
        single_a = single[a][:, None]
        P_a_minus_P_p = pairs[states[a]] - pairs[states[chosen[group]]]  # (K, m)
        change = single_a + single + P_a_minus_P_p[:, states] - P_a_minus_P_p[:, states[replaced]]
        change[:, a] = single_a  # this group only
        for use, available in more_use:
            use_a = use[a][:, None]
            total_use = use_a + use
            total_use[:, a] = use_a
            change[total_use > available] = np.inf
        row, b = np.unravel_index(change.argmin(), change.shape)
        if change[row, b] < lowest:
            lowest = float(change[row, b])
            best = int(b), int(a[row])
    return best


def _blocks(programme: Programme) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Yield the states of each two groups with costs in common, and the matrix of these costs."""
    assert programme.pairs is not None
    states = []  # of each group
    for group in range(programme.groups[-1] + 1):
        in_group = programme.groups == group
        states.append(np.unique(programme.states[in_group]))
    for first, second in itertools.combinations(states, 2):
        block = programme.pairs[np.ix_(first, second)]
        if block.any():
            yield first, second, block
