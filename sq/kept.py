"""What is made of every image once and needed again and again: kept as far as memory allows, else made anew."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from sq.console import say
from sq.store import GIB

Make = Callable[[Tensor], list[Tensor]]  # of images by number (B,): tensors (B, ...)


class Kept:
    """Tensors of images by number; the first call makes those of all images, unless they take too much memory.

    Parameters
    ----------
    make : returns what is wanted of some images; it must not depend on which are asked for together
    images : how many there are
    size : images to make it of at a time
    limit_gib : what all may take; beyond that, each call makes its own
    """

    def __init__(self, make: Make, images: int, size: int, limit_gib: float):
        self.make, self.images, self.size, self.limit = make, images, size, limit_gib * GIB
        self.all: list[Tensor] | None = None
        self.streamed = False

    def __call__(self, index: Tensor) -> list[Tensor]:
        """Return the tensors of the images numbered `index` (B,)."""
        if self.all is None and not self.streamed:
            self._fill()
        if self.all is None:
            return self.make(index)
        return [_unpacked(own[index]) for own in self.all]

    def _fill(self) -> None:
        first, *rest = torch.arange(self.images).split(self.size)
        made = self.make(first)
        need = sum(own.numel() * own.element_size() for own in made) / len(first) * self.images
        if need > self.limit:
            self.streamed = True
            say(f"targets take {need / GIB:.2g} GiB, quantizer.memory_gib={self.limit / GIB:g}: made anew each step")
            return
        self.all = [_packed(own).new_empty((self.images, *_packed(own).shape[1:])) for own in made]
        for part in (first, *rest):
            made = made if part is first else self.make(part)
            for all_, own in zip(self.all, made, strict=True):
                all_[part] = _packed(own)


def _packed(x: Tensor) -> Tensor:
    """Return `x` with its channels last, so that picking images copies rows of memory."""
    return x.movedim(1, -1) if x.ndim > 2 else x


def _unpacked(x: Tensor) -> Tensor:
    return x.movedim(-1, 1) if x.ndim > 2 else x
