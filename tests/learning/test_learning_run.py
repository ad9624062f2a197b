import time
from types import SimpleNamespace

import pytest

from sq.learning.learning_run import LearningRun
from sq.storage.resume import StepCost


def spending():
    own = LearningRun(
        student=None, resume=SimpleNamespace(spent=StepCost()), images=1, seed=0, save_every=1
    )
    own.start_clock()
    return own, own.resume.spent


def work(seconds=0.02):
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass


def test_layers_of_a_part_share_its_time_and_steps_add_up():
    own, spent = spending()
    work()
    own.count_time(["a", "b"], 3)
    assert spent.seconds["a"] == pytest.approx(spent.seconds["b"])
    assert (spent.steps, spent.seconds["a"] >= 0.009, spent.cpu >= 0.019) == (3, True, True)
    before = spent.seconds["a"]
    work()
    own.count_time(["a"], 2)
    assert spent.steps == 5
    assert spent.seconds["a"] > before + 0.019


def test_what_is_no_step_counts_apart():
    own, spent = spending()
    work()
    own.count_time(["a"], 0)
    assert (spent.steps, spent.cpu) == (0, 0.0)
    assert spent.seconds["a"] > 0.019
    assert spent.once > 0.019
