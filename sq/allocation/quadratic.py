"""Programmes with quadratic costs: linearised where there are few products, else searched, with a proven gap."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace

import numpy as np

from sq.allocation import convex_bound, milp, pair_exchange
from sq.allocation.integer_program import Effort, Programme, Solution
from sq.errors import SqError

START = 1e-3  # gap at which a choice is good enough to start from


def solve(programme: Programme, effort: Effort) -> Solution | None:
    """Return the best choice found within the limits and a lower bound of all; None if no choice keeps to them.

    Without pairs that is the integer programme. With no more products than `effort.products` it is
    the linearised one, exact; with more, or where time ran out for that, `search`.

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
    other = search(programme, effort)
    assert other is not None
    best = min(exact, other, key=lambda found: found.cost)
    return replace(best, bound=max(exact.bound, other.bound))


def products(programme: Programme) -> int:
    """Return how many products of two states there are, of groups that have costs in common."""
    return sum(block.size for _, _, block in _blocks(programme))


def linearise(programme: Programme) -> milp.Columns:
    """Return columns with y_kl for the product of x_k and x_l, wherever two groups have costs in common.

    With sum_l y_kl = x_k and sum_k y_kl = x_l over the states of each two groups, y is the product
    in every choice, and the relaxation is as tight as one of this size can be.

    Source
    ------
    Adams and Sherali 1986, A tight linearization and an algorithm for zero-one quadratic
    programming problems.
    """
    from scipy import sparse

    plain = milp.columns(programme)
    entries: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []  # rows, columns, values
    costs, constant, row, column = [plain.costs], plain.constant, 0, len(plain.costs)
    for first, second, block in _blocks(programme):
        constant += float(block.min())
        costs.append((block - block.min()).ravel())
        places = np.arange(column, column + block.size).reshape(block.shape)
        for state, line in [*zip(first, places, strict=True), *zip(second, places.T, strict=True)]:
            own = np.flatnonzero(programme.states == state)
            ones = np.concatenate([np.ones(len(line)), -np.ones(len(own))])
            entries.append((np.full(len(ones), row), np.concatenate([line, own]), ones))
            row += 1
        column += block.size
    rows, columns, values = (np.concatenate(parts) for parts in zip(*entries, strict=True))
    tie = sparse.csr_array((values, (rows, columns)), shape=(row, column))
    one = sparse.hstack(
        [plain.equal, sparse.csr_array((len(plain.right), column - len(plain.costs)))]
    )
    right = np.concatenate([plain.right, np.zeros(row)])
    return milp.Columns(
        np.concatenate(costs), constant, sparse.vstack([one, tie], format="csr"), right
    )


def search(programme: Programme, effort: Effort) -> Solution | None:
    """Return the best of local searches, and the best bound (`convex_bound`); None if nothing keeps to the limits.

    They start from what is best without pairs, from what is best by the tangent of the bound, and
    from the choice nearest to where that touches; and from what is best by costs as the best choice
    so far sees them, while that helps.

    Raises
    ------
    SqError : the time ran out before any choice was found
    """
    deadline = time.monotonic() + (math.inf if effort.time_limit is None else effort.time_limit)
    alone = replace(programme, pairs=None)
    first = milp.solve(alone, effort)
    if first is None:
        return None
    pairs = programme.pairs
    assert pairs is not None
    tangent = convex_bound.relax(programme, effort.steps, deadline)

    def start(costs: np.ndarray, gap: float = START) -> Solution | None:
        """Solve for other costs, without pairs, in what is left of the time and at least a second."""
        left = None if effort.time_limit is None else max(deadline - time.monotonic(), 1.0)
        with suppress(SqError):
            return milp.solve(
                replace(alone, costs=costs),
                replace(effort, gap=max(effort.gap, gap), time_limit=left),
            )
        return None

    lowest = start(tangent.costs, 0.0)
    starts = [found.chosen for found in (first, lowest, start(-tangent.point)) if found is not None]
    best = min((pair_exchange.improve(programme, chosen) for chosen in starts), key=programme.cost)
    while time.monotonic() < deadline:
        seen = start(programme.costs + pairs[:, programme.states[best]].sum(1)[programme.states])
        other = best if seen is None else pair_exchange.improve(programme, seen.chosen)
        if programme.cost(other) >= programme.cost(best):
            break
        best = other
    cost = programme.cost(best)
    bounds = [tangent.bound if lowest is None else lowest.bound + tangent.constant]
    if programme.gram is not None:
        tangent = convex_bound.of_squares(programme, effort.steps, deadline)
        lowest = start(tangent.costs, 0.0)
        bounds += [tangent.bound if lowest is None else lowest.bound + tangent.constant]
    return Solution(best, cost, min(max(bounds), cost), "local search")


def _blocks(programme: Programme) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Yield, for each two groups with costs in common, their states and what these cost together."""
    assert programme.pairs is not None
    states = [
        np.unique(programme.states[programme.groups == group])
        for group in range(programme.groups[-1] + 1)
    ]
    for first, second in itertools.combinations(states, 2):
        block = programme.pairs[np.ix_(first, second)]
        if block.any():
            yield first, second, block
