import os
import signal
import subprocess
import sys
import threading
import time

import pytest
import torch

from sq.core import plugins
from sq.runtime import cpu_threads


@pytest.fixture(autouse=True)
def restored():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def each(function, items, workers, **settings):
    torch.set_num_threads(workers)
    try:
        return cpu_threads.each(function, items, "t", **{"cost": lambda item: 1.0} | settings)
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
        return (
            torch.get_num_threads(),
            cpu_threads.allowed() if workers > 1 else 1,
            torch.is_grad_enabled(),
        )

    with torch.no_grad():
        assert set(each(look, [1, 2, 3, 4], workers)) == {(1, 1, False)}
    with torch.enable_grad():
        assert set(each(look, [1, 2, 3, 4], workers)) == {(1, 1, True)}


def test_workers_may_name_what_the_caller_allows_and_other_threads_may_not():
    def look(_):
        return plugins.is_allowed("numpy.load")

    with plugins.allowing(["numpy"]):
        for workers in (1, 3):
            assert each(look, [1, 2, 3, 4], workers) == [True] * 4
        assert in_new_thread(lambda: look(0)) is False
    assert each(look, [1, 2], 2) == [False] * 2


@pytest.mark.parametrize("block", [cpu_threads.phases, lambda: cpu_threads.use(1)])
def test_workers_within_workers_are_none(block):
    torch.set_num_threads(3)
    with block():
        assert cpu_threads.allowed() == 3
        numbers = cpu_threads.each(nested, [1, 2, 3], "t", cost=lambda _: 1.0)
    assert len({outer for outer, _, _ in numbers}) > 1
    for outer, allowed, inner in numbers:
        assert allowed == 1
        assert set(inner) == {outer}


def nested(_):
    time.sleep(0.02)  # so that no worker takes all items
    inner = cpu_threads.each(lambda _: threading.get_ident(), [1, 2, 3, 4], "t", cost=lambda _: 1.0)
    return threading.get_ident(), cpu_threads.allowed(), inner


def test_items_run_side_by_side():
    together = threading.Barrier(3)  # breaks, which raises, unless three wait at a time
    assert each(lambda item: together.wait(20) >= 0, [0, 1, 2], 3) == [True] * 3


def test_what_costs_most_begins_first():
    begun = []
    # one at a time
    each(begun.append, [3, 1, 4, 1, 5], 2, cost=lambda item: item, size=lambda item: 1, room=1)
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
        time.sleep(0.2)  # the main thread waits by now
        # A signal wakes it, as Ctrl+C does; `_thread.interrupt_main` would not.
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

    threading.Thread(target=interrupt).start()
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        each(work, [1, 2, 3, 4], 2)
    assert time.monotonic() - began < endless / 2
    assert not [one for one in threading.enumerate() if one.name.startswith("sq-")]


def test_phases_begin_with_one_thread_and_leave_all_as_it_was():
    torch.set_num_threads(3)
    with cpu_threads.phases():
        assert (torch.get_num_threads(), cpu_threads.allowed()) == (1, 3)
        cpu_threads.set_for(cpu_threads.LARGE)
        assert (torch.get_num_threads(), cpu_threads.allowed()) == (3, 3)
        with cpu_threads.suited_to(cpu_threads.SMALL - 1) as number:
            assert (torch.get_num_threads(), number) == (1, 3)
        cpu_threads.set_for(cpu_threads.LARGE - 1)
        with cpu_threads.for_product(cpu_threads.LARGE):
            assert torch.get_num_threads() == 3
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == cpu_threads.allowed() == 3


SIDE_BY_SIDE = """
import threading

import torch
from threadpoolctl import ThreadpoolController

from sq.runtime import cpu_threads as threads


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
    env = os.environ | {
        "OMP_NUM_THREADS": "2",
        "OPENBLAS_NUM_THREADS": "2",
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    done = subprocess.run(
        [sys.executable, "-c", SIDE_BY_SIDE], env=env, capture_output=True, text=True, timeout=100
    )
    assert done.stdout.startswith("True True"), done.stdout + done.stderr


def in_new_thread(function):
    results = []
    thread = threading.Thread(target=lambda: results.append(function()))
    thread.start()
    thread.join(20)
    return results[0]


def test_threads_that_begin_within_a_block_have_the_number_of_outside():
    torch.set_num_threads(3)
    with cpu_threads.use(1):
        assert torch.get_num_threads() == 1
        assert in_new_thread(torch.get_num_threads) == 3
        cpu_threads.set_for(cpu_threads.LARGE)
        assert (torch.get_num_threads(), in_new_thread(torch.get_num_threads)) == (3, 3)
        numbers = each_number()
        assert numbers == [(1, 3)] * 4
    assert (torch.get_num_threads(), in_new_thread(torch.get_num_threads)) == (3, 3)


def each_number():
    def look(_):
        time.sleep(0.05)  # until all workers have set their number
        return torch.get_num_threads(), in_new_thread(torch.get_num_threads)

    return cpu_threads.each(look, [1, 2, 3, 4], "t", cost=lambda _: 1.0)


@pytest.mark.parametrize("first", [0, 1])
def test_blocks_side_by_side_end_in_any_order(first):
    torch.set_num_threads(3)
    begun, ends, after = (
        [threading.Event() for _ in range(2)],
        [threading.Event() for _ in range(2)],
        {},
    )

    def work(number):
        with cpu_threads.use(number + 1):
            begun[number].set()
            ends[number].wait(20)
        after[number] = torch.get_num_threads()

    crew = [threading.Thread(target=work, args=(number,)) for number in range(2)]
    for number, thread in enumerate(crew):  # the second begins while the first is within its block
        thread.start()
        begun[number].wait(20)
    for number in (first, 1 - first):
        ends[number].set()
        crew[number].join(20)
    assert after == {0: 3, 1: 3}
    assert (torch.get_num_threads(), in_new_thread(torch.get_num_threads)) == (3, 3)


TWO_CALLS = """
import threading

import torch
from torch import nn

import sq

inside, begun = threading.Event(), threading.Event()


class First(nn.Sequential):
    def forward(self, x):
        if first_waits and torch.get_num_threads() == 1:  # within sq
            inside.set()
            begun.wait(60)
        return super().forward(x)


class Second(nn.Sequential):
    def forward(self, x):
        begun.set()
        return super().forward(x)


def network(kind):
    torch.manual_seed(0)
    return kind(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(128, 5))


def quantize(kind):
    made[kind] = sq.quantize(networks[kind], x, "activation=mse", quantizer="sensiquant", bits=4).state_dict()
    numbers.append(torch.get_num_threads())


def begin(kind):
    if kind is Second:
        inside.wait(60)
    quantize(kind)


x = torch.randn(16, 3, 8, 8)
networks = {kind: network(kind) for kind in (First, Second)}
made, numbers, first_waits = {}, [], False
for kind in networks:
    quantize(kind)
alone, made, first_waits = made, {}, True
begun.clear()
crew = [threading.Thread(target=begin, args=(kind,)) for kind in networks]
for thread in crew:
    thread.start()
for thread in crew:
    thread.join(100)
later = threading.Thread(target=lambda: numbers.append(torch.get_num_threads()))
later.start()
later.join()
same = [torch.equal(value, made[kind][name]) for kind in networks for name, value in alone[kind].items()]
print(inside.is_set(), begun.is_set(), set(numbers), len(numbers), all(same), len(same) > 10)
"""


def test_two_calls_at_a_time_leave_the_number_and_return_what_they_return_alone():
    env = os.environ | {"OMP_NUM_THREADS": "2", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", TWO_CALLS], env=env, capture_output=True, text=True, timeout=200
    )
    assert done.stdout.startswith("True True {2} 5 True True"), done.stdout + done.stderr
