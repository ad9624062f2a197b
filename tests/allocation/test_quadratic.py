"""Costs of pairs: the linearisation is exact, the bound below every choice, what search finds a local minimum."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from tolerances import gamma

from sq.allocation import convex_bound, quadratic
from sq.allocation.integer_program import Effort, Programme


def programme(seed, groups=5, options=3, strength=0.5, shared=False):
    """Return a programme with pairs of all groups and one limit that binds."""
    random = np.random.default_rng(seed)
    n = groups * options
    owner = np.repeat(np.arange(groups), options)
    states = np.repeat(np.arange(n // 2 + n % 2), 2)[:n] if shared else np.arange(n)
    if shared:  # two options to a state, three states at most in four options
        owner, states = np.repeat(np.arange(groups), 4), np.repeat(np.arange(2 * groups), 2)
        n = 4 * groups
    m = states[-1] + 1
    home = np.zeros(m, dtype=int)
    home[states] = owner
    pairs = strength * random.normal(size=(m, m))
    pairs = np.where(home[:, None] == home, 0, pairs + pairs.T)
    use = random.integers(1, 100, n)
    made = Programme(random.exponential(size=n), owner, use, {"use": use}, {}, states, pairs)
    low, high = made.reach("use")
    return replace(made, limits={"use": low + 0.4 * (high - low)})


def every(case):
    own = [np.flatnonzero(case.groups == g) for g in range(case.groups[-1] + 1)]
    return [c for c in map(np.array, itertools.product(*own)) if case.keeps(c)]


def written_out(case, chosen):
    states = case.states[chosen]
    return case.costs[chosen].sum() + sum(
        case.pairs[a, b] for a, b in itertools.combinations(states, 2)
    )


def rounding(case):
    # costs of a choice are sums over all costs and pairs at most; the eigenvalues taken off are
    # such sums as well
    size = np.abs(case.costs).sum() + np.abs(case.pairs).sum()
    return 2 * gamma(case.pairs.size, torch.float64) * float(size)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("shared", [False, True])
def test_linearised_is_exact(seed, shared):
    case = programme(seed, shared=shared)
    found = quadratic.solve(case, Effort(products=10**6))
    assert found.method == "linearised ilp"
    assert found.gap == 0
    assert found.cost == pytest.approx(min(written_out(case, c) for c in every(case)))
    assert found.cost == pytest.approx(written_out(case, found.chosen))


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("steps", [0, 50])
def test_tangent_is_below_every_choice(seed, shared, steps):
    case = programme(seed, shared=shared)
    tangent = convex_bound.relax(case, steps)
    excess = [written_out(case, c) - tangent.costs[c].sum() - tangent.constant for c in every(case)]
    assert min(excess) >= -rounding(case)
    assert tangent.bound <= min(written_out(case, c) for c in every(case)) + rounding(case)


def squares(seed, groups=6, options=4, shared=False):
    """Return a programme whose costs are 1/2 ||sum of vectors||^2, and these vectors."""
    case = programme(seed, groups, options, shared=shared)
    random = np.random.default_rng(seed)
    home = np.zeros(len(case.pairs), dtype=int)
    home[case.states] = case.groups
    vectors = (
        random.normal(size=(home[-1] + 1, 8))[home] * random.exponential(size=len(home))[:, None]
    )
    vectors += 0.2 * random.normal(size=vectors.shape)
    gram = vectors @ vectors.T
    pairs = np.where(home[:, None] == home, 0, gram)
    return replace(case, costs=gram.diagonal()[case.states] / 2, pairs=pairs, gram=gram), vectors


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("steps", [0, 50])
def test_bound_of_squares_is_below_every_choice_and_never_below_zero(seed, shared, steps):
    case, vectors = squares(seed, groups=5, options=3, shared=shared)
    tangent = convex_bound.of_squares(case, steps)
    costs = [float(np.square(vectors[case.states[c]].sum(0)).sum() / 2) for c in every(case)]
    assert costs == pytest.approx([written_out(case, c) for c in every(case)])
    excess = [
        cost - tangent.costs[c].sum() - tangent.constant
        for cost, c in zip(costs, every(case), strict=True)
    ]
    assert min(excess) >= -rounding(case)
    assert -rounding(case) <= tangent.bound <= min(costs) + rounding(case)


def test_search_of_squares_has_a_better_bound_and_ends_where_it_did():
    gaps = []
    for seed in range(4):
        case, _ = squares(seed, groups=8)
        with_gram, without = (
            quadratic.search(c, Effort(steps=50)) for c in (case, replace(case, gram=None))
        )
        assert with_gram.chosen.tolist() == without.chosen.tolist()
        assert with_gram.bound >= max(without.bound, 0)
        gaps.append((with_gram.gap, without.gap))
    assert any(ours < theirs for ours, theirs in gaps)
    assert all(ours <= 1 for ours, _ in gaps)


def test_more_steps_bring_a_better_bound():
    case = programme(0, groups=8, strength=0.1)

    assert convex_bound.relax(case, 50).bound > convex_bound.relax(case, 0).bound


@pytest.mark.parametrize("seed", range(6))
def test_search_reports_a_bound_that_holds_and_ends_in_a_local_minimum(seed):
    case = programme(seed, strength=0.2)
    found = quadratic.search(case, Effort(steps=50))
    choices = {tuple(c): written_out(case, c) for c in every(case)}
    least = min(choices.values())
    assert found.bound <= least + rounding(case)
    assert case.keeps(found.chosen)
    assert found.cost == pytest.approx(choices[tuple(found.chosen)])
    near = [
        cost
        for c, cost in choices.items()
        if sum(a != b for a, b in zip(c, found.chosen, strict=True)) <= 2
    ]
    assert found.cost <= min(near) + rounding(case)


@pytest.mark.parametrize("seed", range(6))
def test_exchange_takes_the_best_change_of_two_groups_first(seed):
    case = programme(seed)
    start = min(every(case), key=lambda c: case.uses["use"][c].sum())
    ended = quadratic.improve(case, start)
    assert case.keeps(ended)
    assert written_out(case, ended) <= written_out(case, start)
    near = [c for c in every(case) if sum(a != b for a, b in zip(c, start, strict=True)) <= 2]
    first = quadratic._best_change(case, start)
    if first is None:
        assert written_out(case, start) <= min(written_out(case, c) for c in near) + rounding(case)
    else:
        changed = start.copy()
        for option in first:
            changed[case.groups[option]] = option
        assert written_out(case, changed) == pytest.approx(min(written_out(case, c) for c in near))


def test_pairs_that_cost_nothing_are_left_out():
    case = programme(0)
    found = quadratic.solve(replace(case, pairs=0 * case.pairs), Effort())
    assert found.method == "ilp"


def test_time_that_does_not_suffice_for_the_exact_one_still_gives_a_choice():
    case = programme(0, groups=30, options=5, strength=0.005)
    found = quadratic.solve(case, Effort(products=10**6, steps=20, time_limit=0.5))
    assert case.keeps(found.chosen)
    assert found.method == "local search"
    assert 0 < found.gap < 0.5
