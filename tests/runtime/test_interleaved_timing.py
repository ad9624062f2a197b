"""Timing in turns."""

import gc
import itertools
import time

import numpy as np
import pytest

from sq.runtime import interleaved_timing


@pytest.mark.parametrize("names", ["a", "ab", "abcd"])
def test_everyone_runs_once_a_round_and_nobody_after_itself(names):
    turns = []
    found = interleaved_timing.race(
        {name: lambda name=name: turns.append(name) for name in names}, 40, 2, "letters"
    )
    rounds = ["".join(turns[k : k + len(names)]) for k in range(0, len(turns), len(names))]
    assert len(rounds) == 42
    assert all(sorted(own) == sorted(names) for own in rounds)
    assert {name: len(ms) for name, ms in found.items()} == dict.fromkeys(names, 40)
    if len(names) > 1:
        assert all(one != other for one, other in itertools.pairwise(turns))
    if len(names) > 2:
        assert len(set(rounds)) > 10, "the order changes"
        assert len({own[0] for own in rounds}) == len(names)


def test_milliseconds_are_of_each_round_without_the_warm_up():
    naps = {"short": iter([0.1, 0.001, 0.001, 0.001]), "long": iter([0.0, 0.02, 0.02, 0.02])}
    found = interleaved_timing.race(
        {n: lambda own=own: time.sleep(next(own)) for n, own in naps.items()}, 3, 1, "naps"
    )
    assert 1 <= np.median(found["short"]) < 20
    assert np.median(found["long"]) >= 20


@pytest.mark.parametrize("on", [True, False])
def test_garbage_is_collected_as_before_whatever_happens(on):
    was = gc.isenabled()
    (gc.enable if on else gc.disable)()
    try:
        with pytest.raises(ZeroDivisionError):
            interleaved_timing.race({"a": lambda: 1 / 0}, 1, 0, "nothing")
        assert gc.isenabled() is on
    finally:
        (gc.enable if was else gc.disable)()


def test_spread_is_the_median_and_quartiles():
    assert interleaved_timing.spread(np.array([5.0, 1.0, 2.0, 3.0, 4.0])) == {
        "median": 3.0,
        "low": 2.0,
        "high": 4.0,
    }
