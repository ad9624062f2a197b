"""HiGHS behind its tolerances: limits are kept to exactly, small costs beside large ones still count."""

import itertools
import os

import numpy as np
import pytest
import torch
from tolerances import relative

from sq.allocation import milp
from sq.allocation.integer_program import Effort, Programme
from sq.errors import SqError


def programme(costs, uses, limit, size=None):
    """Return a programme from costs and uses of each group's options."""
    groups = np.repeat(np.arange(len(costs)), [len(row) for row in costs])
    flat = np.concatenate([np.asarray(row) for row in uses])
    made = Programme(
        np.concatenate(costs).astype(float), groups, flat if size is None else size, {"use": flat}
    )
    return Programme(**{**vars(made), "limits": {"use": limit}})


def brute(case):
    starts = [np.flatnonzero(case.groups == g) for g in range(case.groups[-1] + 1)]
    choices = (np.array(c) for c in itertools.product(*starts))
    return min(
        case.costs[c].sum() for c in choices if case.uses["use"][c].sum() <= case.limits["use"]
    )


@pytest.mark.parametrize("seed", range(8))
def test_limits_of_many_digits_are_kept_to_the_last(seed):
    random = np.random.default_rng(seed)
    uses = random.integers(10**11, 2 * 10**11, (7, 3))
    costs = random.random((7, 3))
    some = random.integers(0, 3, 7)
    for less in (0, 1):  # what one choice uses, and one unit less
        case = programme(costs, uses, int(uses[np.arange(7), some].sum()) - less)
        found = milp.solve(case, Effort())
        assert case.keeps(found.chosen)
        assert found.cost == pytest.approx(brute(case), rel=relative(7, torch.float64))


@pytest.mark.parametrize("seed", range(4))
def test_costs_of_many_sizes(seed):
    random = np.random.default_rng(seed)
    costs = 10.0 ** random.uniform(-9, 5, (6, 4))
    case = programme(costs, random.integers(1, 50, (6, 4)), 150)
    found = milp.solve(case, Effort())
    assert found.cost == pytest.approx(brute(case), rel=relative(6, torch.float64))
    assert found.gap == 0


def test_time_that_runs_out_while_costs_are_scaled_again_costs_no_choice(monkeypatch):
    case = programme([[0.0, 1e9], [0.0, 3.0, 1.0], [2.0, 0.5]], [[1, 1], [9, 1, 5], [1, 2]], 7)
    wanted, calls, minimise = milp.solve(case, Effort()), [], milp._Highs.minimise

    def once(self, costs, allowed, *more):
        calls.append(costs)
        if len(calls) > 1:
            raise SqError("allocation.time_limit=1 seconds: no choice of bits was found")
        return minimise(self, costs, allowed, *more)

    monkeypatch.setattr(milp._Highs, "minimise", once)
    found = milp.solve(case, Effort(time_limit=1.0))
    assert len(calls) == 3, "scaled again, then the smallest"
    assert case.keeps(found.chosen)
    assert found.bound <= wanted.cost <= found.cost
    assert found.cost < 1e9
    with pytest.raises(SqError, match="no choice of bits"):
        milp.solve(case, Effort(time_limit=1.0))


def test_no_choice():
    assert milp.solve(programme([[1.0, 2.0]], [[5, 6]], 4), Effort()) is None


def test_of_equal_costs_the_smallest():
    case = programme([[1.0, 0.5], [1.0, 0.5]], [[1, 2], [1, 3]], 4, size=np.array([5, 9, 5, 7]))
    assert milp.solve(case, Effort()).chosen.tolist() == [0, 3]


def test_gap_that_is_allowed_is_reported():
    random = np.random.default_rng(0)
    case = programme(random.random((30, 5)), random.integers(1, 10**6, (30, 5)), 10**7)
    near, least = milp.solve(case, Effort(gap=0.2)), milp.solve(case, Effort())
    assert least.cost <= near.cost <= least.cost * 1.25
    assert near.bound <= least.cost
    assert near.gap <= 0.2


def test_what_is_printed_in_c_does_not_reach_standard_output(capfd):
    with milp._silence():
        os.write(1, b"debugging\n")
    os.write(1, b"results\n")
    assert capfd.readouterr().out == "results\n"
