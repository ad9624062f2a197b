"""How many CPU threads work is worth: several where operations are large, one elsewhere; items side by side, one each.

An operation on several threads ends when the slowest of them does. On cores shared with other
processes a thread waits for its turn, some milliseconds, so that an operation of a tenth of that
takes many times as long as on one thread (results/LOG.md, 2026-12-01). Work that consists of many
small operations is therefore not split operation by operation: each layer is one piece of work,
with one thread, and several layers run side by side, which wait for nobody.

PyTorch's number of threads belongs to the thread that sets it, but threads that begin later get the
number that was set last by any of them. Here it is set for the calling thread alone: threads of the
caller's that begin meanwhile have the number that they would have without sq, in whichever order
blocks of several threads end.
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

# elements: below, a pass over them is faster on one thread (measured with threads that sleep)
SMALL = 2**18
# Multiply-adds of one operation. On 2 cores shared with 8 other processes two threads took, as a
# multiple of the time of one (means of many repeats in turns): convolutions of 19, 75, 151 and 302
# million 3.1, 1.3, 1.15 and 0.87; products of matrices of 33, 64, 134 and 262 million 2.4, 1.3, 0.9
# and 0.93. From here on several threads lose nothing in company; what they gain on idle cores was
# not measured.
LARGE = 2**27
# seconds for running items to end after an interrupt; one long operation cannot be stopped within
STOPPING = 30.0

_allowed: ContextVar[int | None] = ContextVar("allowed", default=None)
_setting = threading.Lock()


class _Blas:
    """One thread for OpenBLAS while any block of any thread wants that."""

    def __init__(self) -> None:
        self.lock, self.blocks, self.limits = threading.Lock(), 0, ExitStack()

    @contextmanager
    def limited(self) -> Iterator[None]:
        """Limit it for the block."""
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
    """Return how many threads the work may use: as many as PyTorch had outside of all `use` blocks."""
    return _allowed.get() or torch.get_num_threads()


def _set(number: int) -> None:
    """Set the number of this thread; threads that begin later get what they would have got before.

    That number can be read, and put back, by a thread alone that has just begun. One that begins
    while this function runs, less than a millisecond, may still get `number`.
    """
    if torch.get_num_threads() == number:
        return
    read, changed = threading.Event(), threading.Event()

    def put_back() -> None:
        later = torch.get_num_threads()
        read.set()
        changed.wait()
        torch.set_num_threads(later)

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
    """Run the block on `number` CPU threads, each operation."""
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
    """Run the block on one CPU thread if its operations have fewer than `SMALL` elements; give the number it had."""
    before = torch.get_num_threads()
    with use(1 if elements < SMALL else before):
        yield before


@contextmanager
def phases() -> Iterator[None]:
    """Let the block set its number of threads by `set_for` as it goes on, one at first; restore it afterwards.

    NumPy's products are small wherever sq uses them: they have one thread throughout. OpenBLAS
    would have its threads spin meanwhile (22.8 ms of CPU in place of 2.7 for the columns of a block
    with 8,192 rows). OpenBLAS has one number for the process: it is restored by the last of several
    blocks that run side by side.
    """
    with _blas.limited(), use(1):
        yield


@contextmanager
def for_product(work: float) -> Iterator[None]:
    """Run the block on all `allowed` threads if operations of it have `LARGE` multiply-adds or more, else on one."""
    with use(allowed() if work >= LARGE else 1):
        yield


def set_for(work: float) -> None:
    """Use all `allowed` threads from now on if operations of `work` multiply-adds are `LARGE`, else one."""
    _set(allowed() if work >= LARGE else 1)


def work(model: Model, images: int) -> float:
    """Return the multiply-adds of a layer in one pass of `images`, mean of all layers; `model` is traced."""
    return sum(layer.macs for layer in model.layers) * images / max(1, len(model.layers))


def each(
    function: Callable[[T], R],
    items: Sequence[T],
    what: str,
    *,
    cost: Callable[[T], float],
    size: Callable[[T], int] | None = None,
    room: float = float("inf"),
) -> list[R]:
    """Return ``[function(item) for item in items]``, computed by `allowed` threads side by side.

    Every item is computed on one thread, so that results do not depend on how many there are, or on
    which ends first. Context variables are those of the caller, such as the packages that
    `sq.core.plugins.allowing` allows.

    Parameters
    ----------
    what : is done, for whoever watches
    cost : of an item, in any unit: those that take longest begin first
    size : bytes that an item holds while it is computed
    room : bytes for all that are computed at a time; one item alone may hold more

    Raises
    ------
    BaseException : that of the first item, in the order of `items`, which raises one; items before
    it are computed
    """
    workers = min(allowed(), len(items))
    if workers <= 1:
        with use(1):
            return [function(item) for item in track(items, what, len(items))]
    order = sorted(range(len(items)), key=lambda i: -cost(items[i]))
    sizes = [size(item) if size else 0 for item in items]
    crew = _Crew(function, items, order, sizes, room)
    with crew.at_work(workers):
        for _ in track(crew.ends(), what, len(items)):
            pass
    return crew.outcome()


class _Stopped(SystemExit):
    """Raised in workers when nobody waits for them any more."""


class _Crew(Generic[T, R]):
    """Threads that compute items, each item on one of them."""

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
        self.held: dict[int, int] = {}  # bytes by item that is being computed
        self.results: dict[int, R] = {}
        self.errors: dict[int, BaseException] = {}
        self.changed = threading.Condition()
        self.threads: list[threading.Thread] = []
        self.gradients = torch.is_grad_enabled()  # a thread begins with PyTorch's default

    @contextmanager
    def at_work(self, workers: int) -> Iterator[None]:
        """Have `workers` threads for the block; those still at work when it is left by an exception are stopped."""
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
                self.changed.notify_all()  # whoever waits for memory
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
        """Yield once for each item that is computed, as it ends; stop where none is left to compute."""
        told = 0
        while True:
            with self.changed:
                while told == len(self.results) and not self._over():
                    self.changed.wait()
                done = len(self.results)
            if told == done:
                return
            while told < done:
                told += 1
                yield

    def _over(self) -> bool:
        """Return whether nothing is being computed, or will be: an item behind one that failed does not matter."""
        last = min(self.errors, default=len(self.items))
        self.pending = [number for number in self.pending if number < last]
        return not self.held and not self.pending

    def outcome(self) -> list[R]:
        """Return the results in the order of the items, or raise the first error in that order."""
        if self.errors:
            raise self.errors[min(self.errors)]
        return [self.results[i] for i in range(len(self.items))]

    def _work(self) -> None:
        # what the caller may use is spent on the workers: within them, one thread each
        _allowed.set(None)
        with suppress(_Stopped):
            _set(1)
            with torch.set_grad_enabled(self.gradients):
                self._compute()

    def _compute(self) -> None:
        while (number := self._next()) is not None:
            try:
                result = self.function(self.items[number])
            except _Stopped:
                raise
            except BaseException as error:
                self._end(number, error=error)
            else:
                self._end(number, result=result)

    def _next(self) -> int | None:
        """Return the next item that fits into memory beside those being computed; None if there is nothing to do."""
        with self.changed:
            while True:
                if self._over() or not self.pending:
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
