"""CPU threads: several for a large operation, one for small ones, and items computed in parallel.

An operation on several threads ends when the slowest of them does. On cores shared with other
processes a thread waits some milliseconds for its turn, so an operation that takes a tenth of that
is many times slower than on one thread (results/LOG.md, 2026-12-01). Work of many small operations
is therefore not split operation by operation. Each layer runs on one thread, and several layers run
in parallel without waiting for each other.

PyTorch's number of threads belongs to the thread that sets it, but a thread that starts later gets
the number that any thread set last. Here the number is set for the calling thread alone: threads
that the caller starts meanwhile get the number that they would get without sq, in whichever order
the blocks of several threads end.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from contextvars import ContextVar, copy_context
from typing import Generic, TypeVar

import torch
from threadpoolctl import ThreadpoolController

from sq.core.progress import track
from sq.types.problem import Model

T = TypeVar("T")
R = TypeVar("R")

# Elements below which a pass over a tensor is faster on one thread (measured with threads that
# sleep while they wait).
SMALL = 2**18
# Multiply-adds of one operation from which several threads lose nothing on shared cores. Measured
# on 2 cores shared with 8 other processes, time on two threads over time on one (means of many
# interleaved repeats): convolutions of 19, 75, 151 and 302 million: 3.1, 1.3, 1.15 and 0.87; matrix
# products of 33, 64, 134 and 262 million: 2.4, 1.3, 0.9 and 0.93. The gain on idle cores was not
# measured.
LARGE = 2**27
# Seconds for running items to end after an interrupt; a single operation cannot be interrupted.
STOPPING = 30.0

_allowed: ContextVar[int | None] = ContextVar("allowed", default=None)
_setting = threading.Lock()


class _Blas:
    """Limits OpenBLAS to one thread while a block of any thread asks for it."""

    def __init__(self) -> None:
        self.lock, self.blocks, self.limits = threading.Lock(), 0, ExitStack()

    @contextmanager
    def limited(self) -> Iterator[None]:
        """Limit OpenBLAS for the block."""
        with self.lock:
            if self.blocks == 0:
                self.limits.enter_context(
                    ThreadpoolController().select(internal_api="openblas").limit(limits=1)
                )
            self.blocks += 1
        try:
            yield
        finally:
            with self.lock:
                self.blocks -= 1
                if self.blocks == 0:
                    self.limits.close()


_blas = _Blas()


def allowed() -> int:
    """Return how many threads work may use: PyTorch's number outside of all `use` blocks."""
    return _allowed.get() or torch.get_num_threads()


def _set(number: int) -> None:
    """Set the number of threads for this thread, without changing what later threads start with.

    Only a thread that has just started can read that number, and put it back. Another thread that
    starts while this function runs, less than a millisecond, may still get `number`.
    """
    if torch.get_num_threads() == number:
        return
    read, changed = threading.Event(), threading.Event()

    def put_back() -> None:
        start_number = torch.get_num_threads()
        read.set()
        changed.wait()
        torch.set_num_threads(start_number)

    helper = threading.Thread(target=put_back, name="sq-number", daemon=True)
    with _setting:
        try:
            helper.start()
            read.wait()
            torch.set_num_threads(number)
        finally:
            changed.set()
            if helper.ident is not None:  # it was started
                helper.join()


@contextmanager
def use(number: int) -> Iterator[None]:
    """Run each operation of the block on `number` CPU threads."""
    before = torch.get_num_threads()
    token = _allowed.set(allowed())
    try:
        _set(number)
        yield
    finally:
        _set(before)
        _allowed.reset(token)


@contextmanager
def suited_to(elements: int) -> Iterator[int]:
    """Run the block on one CPU thread if operations are `SMALL`; yield the number before it."""
    before = torch.get_num_threads()
    with use(1 if elements < SMALL else before):
        yield before


@contextmanager
def phases() -> Iterator[None]:
    """Run the block on one CPU thread until it calls `set_for`; restore the number at the end.

    OpenBLAS has one thread throughout: NumPy's products are small wherever sq uses them, and the
    threads of OpenBLAS would spin meanwhile (22.8 ms of CPU in place of 2.7 for the columns of a
    block with 8,192 rows). OpenBLAS has one number for the process: the last of several blocks that
    run in parallel restores it.
    """
    with _blas.limited(), use(1):
        yield


@contextmanager
def for_product(work: float) -> Iterator[None]:
    """Run the block on all `allowed` threads if its operations are `LARGE`, else on one."""
    with use(allowed() if work >= LARGE else 1):
        yield


def set_for(work: float) -> None:
    """From now on use all `allowed` threads if `work` multiply-adds are `LARGE`, else one."""
    _set(allowed() if work >= LARGE else 1)


def work(model: Model, images: int) -> float:
    """Return the mean multiply-adds of a layer in one pass of `images`; `model` is traced."""
    layers = model.layers
    return sum(layer.macs for layer in layers) * images / max(1, len(layers))


def each(
    function: Callable[[T], R],
    items: Sequence[T],
    what: str,
    *,
    cost: Callable[[T], float],
    size: Callable[[T], int] | None = None,
    room: float = float("inf"),
) -> list[R]:
    """Return ``[function(item) for item in items]``, computed in parallel by `allowed` threads.

    Every item is computed on one thread, so results depend neither on the number of threads nor on
    which ends first. Context variables are those of the caller, such as the packages that
    `sq.core.plugins.allowing` allows.

    Parameters
    ----------
    what : the label of the progress bar
    cost : of an item, in any unit: the costliest items begin first
    size : bytes that an item holds while it is computed
    room : bytes for all items that are computed at a time; one item alone may hold more

    Raises
    ------
    BaseException : of the first item, in the order of `items`, that raises one; all items before it
        are computed
    """
    workers = min(allowed(), len(items))
    if workers <= 1:
        with use(1):
            return [function(item) for item in track(items, what, len(items))]
    order = sorted(range(len(items)), key=lambda i: -cost(items[i]))
    sizes = [size(item) if size else 0 for item in items]
    pool = _Pool(function, items, order, sizes, room)
    with pool.running(workers):
        for _ in track(pool.ends(), what, len(items)):
            pass
    return pool.outcome()


class _Stopped(SystemExit):
    """Raised in workers to stop them when the caller no longer waits."""


class _Pool(Generic[T, R]):
    """Threads that compute items, each item on one thread."""

    def __init__(
        self,
        function: Callable[[T], R],
        items: Sequence[T],
        order: list[int],
        sizes: list[int],
        room: float,
    ):
        self.function, self.items, self.sizes, self.room = function, items, sizes, room
        self.pending = order
        self.held: dict[int, int] = {}  # bytes, by number of an item that is being computed
        self.results: dict[int, R] = {}
        self.errors: dict[int, BaseException] = {}
        self.changed = threading.Condition()
        self.threads: list[threading.Thread] = []
        self.gradients = torch.is_grad_enabled()  # a new thread has PyTorch's default instead

    @contextmanager
    def running(self, workers: int) -> Iterator[None]:
        """Run `workers` threads during the block; stop them if an exception leaves it."""
        self.threads = [
            threading.Thread(
                target=copy_context().run, args=(self._work,), name=f"sq-{i}", daemon=True
            )
            for i in range(workers)
        ]
        try:
            for thread in self.threads:
                thread.start()
            yield
        except BaseException:
            with self.changed:
                self.pending = []
                self.changed.notify_all()  # workers that wait for memory
            for thread in self.threads:
                if thread.ident is not None and thread.is_alive():
                    stop = ctypes.pythonapi.PyThreadState_SetAsyncExc
                    stop(ctypes.c_ulong(thread.ident), ctypes.py_object(_Stopped))
            raise
        finally:
            for thread in self.threads:
                if thread.ident is not None:  # it was started
                    thread.join(STOPPING)

    def ends(self) -> Iterator[None]:
        """Yield once for each item when it is computed; end when none is left to compute."""
        yielded = 0
        while True:
            with self.changed:
                while yielded == len(self.results) and not self._is_over():
                    self.changed.wait()
                computed = len(self.results)
            if yielded == computed:
                return
            while yielded < computed:
                yielded += 1
                yield

    def _is_over(self) -> bool:
        """Tell whether no item is being computed or pending; drop those behind one that failed."""
        last = min(self.errors, default=len(self.items))
        self.pending = [number for number in self.pending if number < last]
        return not self.held and not self.pending

    def outcome(self) -> list[R]:
        """Return the results in the order of the items, or raise the first error in that order."""
        if self.errors:
            raise self.errors[min(self.errors)]
        return [self.results[i] for i in range(len(self.items))]

    def _work(self) -> None:
        # The workers are the threads that the caller may use: each of them may use one.
        _allowed.set(None)
        with suppress(_Stopped):
            _set(1)
            with torch.set_grad_enabled(self.gradients):
                self._compute()

    def _compute(self) -> None:
        while True:
            number = self._next()
            if number is None:
                return
            try:
                result = self.function(self.items[number])
            except _Stopped:
                raise
            except BaseException as error:
                self._end(number, error=error)
            else:
                self._end(number, result=result)

    def _next(self) -> int | None:
        """Return the number of the next item, once it fits into memory; None if none is left."""
        with self.changed:
            while True:
                if self._is_over() or not self.pending:
                    return None
                free = self.room - sum(self.held.values())
                for number in self.pending:
                    if not self.held or self.sizes[number] <= free:
                        self.pending.remove(number)
                        self.held[number] = self.sizes[number]
                        return number
                self.changed.wait()

    def _end(
        self, number: int, *, result: R | None = None, error: BaseException | None = None
    ) -> None:
        with self.changed:
            del self.held[number]
            if error is None:
                self.results[number] = result  # type: ignore[assignment]
            else:
                self.errors[number] = error
            self.changed.notify_all()
