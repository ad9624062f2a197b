"""How many CPU threads an operation is worth: waking a second one costs more than small operations take."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

SMALL = 2**18  # elements: below, a pass over them is faster on one thread (measured with threads that sleep)


@contextmanager
def suited_to(elements: int) -> Iterator[int]:
    """Run the block on one CPU thread if its operations have fewer than `SMALL` elements; give the number it had."""
    before = torch.get_num_threads()
    with use(1 if elements < SMALL else before):
        yield before


@contextmanager
def use(number: int) -> Iterator[None]:
    """Run the block on `number` CPU threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)
