"""What steps take, and what they take in full precision."""

import time

import pytest
import torch
from torch import nn

from sq.storage.resume import StepCost
from sq.training.baseline_timing import BASELINE_STEPS, FullPrecisionBaseline, spending


def test_steps_and_their_seconds_are_counted():
    spent = StepCost(steps=3, cpu=1.0, seconds={"network": 2.0})
    start, wall = time.process_time(), time.perf_counter()
    with spending(spent, "network"):
        begun = time.process_time()  # later than `start`, by what it took to get here
        while time.process_time() - begun < 0.05:
            pass
    assert spent.steps == 4
    assert 1.05 <= spent.cpu <= 1.0 + time.process_time() - start
    assert 2.05 <= spent.seconds["network"] <= 2.0 + time.perf_counter() - wall


def test_full_precision_trains_a_copy_and_leaves_the_network():
    net = (
        nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
        .eval()
        .requires_grad_(False)
    )
    before = {name: value.clone() for name, value in net.state_dict().items()}
    own, x, y = FullPrecisionBaseline(net, 100), torch.randn(8, 4), torch.tensor([0, 1] * 4)
    assert own.cpu_seconds() == 0
    for _ in range(3):
        own.step(x, y)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert not net.training
    assert not torch.equal(own.net[0].weight, net[0].weight)
    assert own.spent.steps == 3


@pytest.mark.parametrize(("total", "wanted"), [(0, 0), (1, 1), (5, 5), (90, 9), (1000, 10)])
def test_steps_in_full_precision_are_spread_over_the_run(total, wanted):
    own = FullPrecisionBaseline(nn.Linear(2, 2), total)
    due = [step for step in range(total) if own.is_due(step)]
    assert len(due) == wanted
    assert len(due) <= 2 * BASELINE_STEPS
    assert not due or due[0] == 0


def test_the_first_step_counts_only_where_it_is_the_only_one():
    own = FullPrecisionBaseline(nn.Linear(2, 2), 10)
    own.spent, own.first_cpu = StepCost(steps=1, cpu=5.0), 5.0
    assert own.cpu_seconds() == 5.0
    own.spent = StepCost(steps=3, cpu=7.0)
    assert own.cpu_seconds() == 1.0
