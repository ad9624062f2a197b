import _thread
import os
import subprocess
import sys
import threading
import time

import pytest
import torch

from sq import threads


@pytest.fixture(autouse=True)
def restored():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def each(function, items, workers, **settings):
    torch.set_num_threads(workers)
    try:
        return threads.each(function, items, "t", **{"cost": lambda item: 1.0} | settings)
    finally:
        assert torch.get_num_threads() == workers


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_results_come_in_the_order_of_the_items(workers):
    def slow(item):
        time.sleep(0.002 * (9 - item))
        return item**2

    assert each(slow, list(range(10)), workers) == [item**2 for item in range(10)]
    assert each(slow, [], workers) == []


@pytest.mark.parametrize("workers", [1, 3])
def test_every_item_has_one_thread_and_the_gradient_mode_of_the_caller(workers):
    def look(_):
        return torch.get_num_threads(), threads.allowed() if workers > 1 else 1, torch.is_grad_enabled()

    with torch.no_grad():
        assert set(each(look, [1, 2, 3, 4], workers)) == {(1, 1, False)}
    with torch.enable_grad():
        assert set(each(look, [1, 2, 3, 4], workers)) == {(1, 1, True)}


def test_items_run_side_by_side():
    together = threading.Barrier(3)  # breaks, which raises, unless three wait at a time
    assert each(lambda item: together.wait(20) >= 0, [0, 1, 2], 3) == [True] * 3


def test_what_costs_most_begins_first():
    begun = []
    each(begun.append, [3, 1, 4, 1, 5], 2, cost=lambda item: item, size=lambda item: 1, room=1)  # one at a time
    assert begun == [5, 4, 3, 1, 1]


def test_no_more_at_a_time_than_there_is_room_for():
    held, most, lock = 0, 0, threading.Lock()

    def hold(size):
        nonlocal held, most
        with lock:
            held += size
            most = max(most, held)
        time.sleep(0.01)
        with lock:
            held -= size

    each(hold, [2, 2, 2, 1, 1, 1], 4, size=lambda item: item, room=4)
    assert most <= 4
    each(hold, [9, 9, 1], 3, size=lambda item: item, room=4)  # too large for the room: alone
    assert most == 9


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_the_first_error_in_the_order_of_items_is_raised(workers):
    def fail(item):
        time.sleep(0.03 if item == 1 else 0)  # the first to fail is the last to end
        if item:
            raise ValueError(item)
        return item

    with pytest.raises(ValueError, match=r"^1$"):
        each(fail, [0, 1, 2, 3, 4, 5], workers, cost=lambda item: item)


def test_items_behind_one_that_failed_are_left():
    done = []

    def fail(item):
        if item == 0:
            raise KeyError
        time.sleep(0.01)
        done.append(item)

    with pytest.raises(KeyError):
        each(fail, list(range(200)), 2)
    assert len(done) < 100


def test_an_interrupt_stops_what_is_running():
    running, endless = threading.Event(), 600.0

    def work(item):
        running.set()
        until = time.monotonic() + endless
        while time.monotonic() < until:
            sum(range(1000))

    def interrupt():
        running.wait()
        _thread.interrupt_main()

    threading.Thread(target=interrupt).start()
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        each(work, [1, 2, 3, 4], 2)
    assert time.monotonic() - began < endless / 2
    assert not [one for one in threading.enumerate() if one.name.startswith("sq-")]


def test_phases_begin_with_one_thread_and_leave_all_as_it_was():
    torch.set_num_threads(3)
    with threads.phases():
        assert (torch.get_num_threads(), threads.allowed()) == (1, 3)
        threads.set_for(threads.LARGE)
        assert (torch.get_num_threads(), threads.allowed()) == (3, 3)
        with threads.suited_to(threads.SMALL - 1) as number:
            assert (torch.get_num_threads(), number) == (1, 3)
        threads.set_for(threads.LARGE - 1)
        with threads.for_product(threads.LARGE):
            assert torch.get_num_threads() == 3
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == threads.allowed() == 3


SIDE_BY_SIDE = """
import threading

import torch
from threadpoolctl import ThreadpoolController

from sq import threads


def blas():
    return [pool["num_threads"] for pool in ThreadpoolController().select(internal_api="openblas").info()]


def run(begun, end):
    with threads.phases():
        begun.set()
        end.wait(20)
        within.append(blas())


before, within = blas(), []
begun, ends = [threading.Event(), threading.Event()], [threading.Event(), threading.Event()]
crew = [threading.Thread(target=run, args=pair) for pair in zip(begun, ends)]
for thread, event in zip(crew, begun):
    thread.start()
    event.wait(20)
for thread, event in zip(crew, ends):  # the first ends while the second goes on
    event.set()
    thread.join(20)
print(blas() == before, within == [[1] * len(before)] * 2, before)
"""


def test_phases_side_by_side_restore_what_numpy_had():
    # In a process of its own, which has threads to begin with.
    env = os.environ | {"OMP_NUM_THREADS": "2", "OPENBLAS_NUM_THREADS": "2", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", SIDE_BY_SIDE], env=env, capture_output=True, text=True, timeout=100)
    assert done.stdout.startswith("True True"), done.stdout + done.stderr
