"""Retry work that runs out of memory with half the batch, and explain the error if that fails."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

import torch
from torch import Tensor

from sq.core.progress import say
from sq.errors import SqError

T = TypeVar("T")

# Messages of libraries below PyTorch. Its own allocator raises an OutOfMemoryError, but cuBLAS,
# cuDNN and cuSOLVER (CUBLAS_STATUS_ALLOC_FAILED), and the CUDA driver allocate memory without it.
MESSAGES = (
    "can't allocate memory",
    "Cannot allocate memory",
    "CUDA error: out of memory",
    "_ALLOC_FAILED",
)

# Of the run or call in progress: sizes that fit in memory, by work that did not at first. Threads
# of `cpu_threads.each` have the context of their caller, and share them.
_sizes_that_fit: ContextVar[dict[str, int] | None] = ContextVar("sizes_that_fit", default=None)


@contextmanager
def remembering() -> Iterator[dict[str, int]]:
    """Remember reduced sizes while the context lasts; yield them, by the name of the work.

    Where the same work is done again, it starts at the size that fitted last.
    """
    sizes: dict[str, int] = {}
    token = _sizes_that_fit.set(sizes)
    try:
        yield sizes
    finally:
        _sizes_that_fit.reset(token)


def fitting(what: str, attempt: Callable[[int], T], size: int) -> T:
    """Return ``attempt(size)``; out of memory, halve the size and try again, down to 1.

    Parameters
    ----------
    what : the name of the work, see `remembering`
    attempt : its result must not depend on `size` (beyond rounding), and a failed call must leave
        nothing behind

    Raises
    ------
    torch.OutOfMemoryError, RuntimeError, MemoryError : size 1 does not fit in memory either
    """
    sizes = _sizes_that_fit.get()
    if sizes is None:  # nobody asked to remember
        sizes = {}
    size = min(size, sizes.get(what, size))
    while True:
        try:
            return attempt(size)
        except (RuntimeError, MemoryError) as error:
            if size == 1 or not is_out(error):
                raise
        # Outside of the except block the error is gone, with the tensors that its traceback held.
        size //= 2
        sizes[what] = size
        say(f"    out of memory: {what} goes on with {size} at a time")
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def forward(what: str, net: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Return ``net(x)`` for images x (B, ...), computed in parts that fit in memory."""
    return fitting(what, lambda size: torch.cat([net(part) for part in x.split(size)]), len(x))


def is_out(error: BaseException) -> bool:
    """Tell whether `error` means that memory of a GPU or the machine ran out."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return any(message in str(error) for message in MESSAGES)


@contextmanager
def explained() -> Iterator[None]:
    """Turn an out-of-memory error of the block into one that says what to do.

    Raises
    ------
    SqError : memory ran out
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out(error):
            raise
        # The first sentence of PyTorch's message; the others are about its allocator.
        reason = " ".join(str(error).split()).partition(". ")[0] or type(error).__name__
        cure = "run fewer processes at a time, or take a machine with more"
        raise SqError(
            f"out of memory ({reason}): lower batch_size= or calibration.images=, {cure}",
            call=f'out of memory ({reason}): lower "batch_size=", give fewer images, {cure}',
        ) from error
