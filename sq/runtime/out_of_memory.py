"""Out of memory: work is tried again in halves where what comes out does not depend on it, and the record says so."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor

from sq.core.progress import say
from sq.errors import SqError

T = TypeVar("T")

# How libraries below PyTorch say it: its own allocator raises an OutOfMemoryError, but cuBLAS,
# cuDNN, cuSOLVER (as CUBLAS_STATUS_ALLOC_FAILED) and the CUDA driver take memory beside it.
WORDS = (
    "can't allocate memory",
    "Cannot allocate memory",
    "CUDA error: out of memory",
    "_ALLOC_FAILED",
)

# of the run in this process: work that did not fit in memory, and the size at which it did
halved: dict[str, int] = {}


def fitting(what: str, attempt: Callable[[int], T], size: int) -> T:
    """Return ``attempt(size)``; where memory does not suffice, of half the size, and so on down to 1.

    Parameters
    ----------
    what : the work, for `halved`; the same work starts at the size that fitted last
    attempt : what it returns must not depend on `size` (beyond rounding), and nothing of a failed
    call may stay

    Raises
    ------
    torch.OutOfMemoryError, RuntimeError, MemoryError : memory does not suffice at size 1 either
    """
    size = min(size, halved.get(what, size))
    while True:
        try:
            return attempt(size)
        except (RuntimeError, MemoryError) as error:
            if size == 1 or not is_out(error):
                raise
        # Here the error is gone, and with it the tensors that its traceback held.
        size //= 2
        halved[what] = size
        say(f"    out of memory: {what} goes on with {size} at a time")
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def forward(what: str, net: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Return ``net(x)`` for images x (B, ...), in as many parts as memory asks for."""
    return fitting(what, lambda size: torch.cat([net(part) for part in x.split(size)]), len(x))


def is_out(error: BaseException) -> bool:
    """Return whether `error` says that memory, a GPU's or the machine's, did not suffice."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(
        word in str(error) for word in WORDS
    )


@contextmanager
def explained() -> Iterator[None]:
    """Say what can be done where memory does not suffice for the block.

    Raises
    ------
    SqError : it did not
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out(error):
            raise
        told = " ".join(str(error).split()).partition(". ")[0] or type(error).__name__
        cure = "run fewer processes at a time, or take a machine with more"
        raise SqError(
            f"out of memory ({told}): lower batch_size= or calibration.images=, {cure}",
            call=f'out of memory ({told}): lower "batch_size=", give fewer images, {cure}',
        ) from error
