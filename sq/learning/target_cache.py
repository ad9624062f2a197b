"""Cache of per-image target activations, up to a memory limit."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from sq.core.progress import say
from sq.errors import SqError
from sq.learning.layout import channels_last
from sq.network.partial_forward import outputs_of
from sq.storage.store import GIB

# From image numbers (B,) to tensors (B, ...), or (k B, ...) where the k parts of an image follow
# one another.
Compute = Callable[[Tensor], list[Tensor]]
ROW_TOLERANCE = 1e-3  # of the largest value: sums in another order differ by less


class TargetCache:
    """Tensors of images, by image number. The first call computes those of all images.

    Parameters
    ----------
    compute : returns the tensors of some images; they must not depend on the batch
    images : number of images
    batch : images per call of `compute` when the cache is filled
    limit_gib : memory that all tensors may take; beyond it, each call computes its own
    """

    def __init__(self, compute: Compute, images: int, batch: int, limit_gib: float):
        self.compute, self.images, self.batch = compute, images, batch
        self.limit = limit_gib * GIB  # bytes
        self.tensors: list[Tensor] | None = None  # each (images, parts, ..., C)
        self.streamed = False  # they take too much memory

    def __call__(self, index: Tensor) -> list[Tensor]:
        """Return the tensors of the images numbered `index` (B,)."""
        if self.tensors is None and not self.streamed:
            self._fill()
        if self.tensors is None:
            return self.compute(index)
        return [_channels_second(rows[index].flatten(0, 1)) for rows in self.tensors]

    def _fill(self) -> None:
        first, *others = torch.arange(self.images).split(self.batch)
        targets = self.compute(first)
        size = sum(target.numel() * target.element_size() for target in targets)
        need = size / len(first) * self.images
        if need > self.limit:
            self.streamed = True
            say(
                f"targets take {need / GIB:.2g} GiB, quantizer.memory_gib={self.limit / GIB:g}: "
                "computed again in each step"
            )
            return
        self.tensors = []
        for target in targets:
            rows = _rows(target, len(first))
            self.tensors.append(rows.new_empty((self.images, *rows.shape[1:])))
        self._store(first, targets)
        for index in others:
            self._store(index, self.compute(index))

    def _store(self, index: Tensor, targets: list[Tensor]) -> None:
        assert self.tensors is not None
        for stored, target in zip(self.tensors, targets, strict=True):
            stored[index] = _rows(target, len(index))


@torch.no_grad()
def check_rows(net: nn.Module, names: list[str], x: Tensor) -> None:
    """Check that outputs of modules of `net` have separate rows for each image, image by image.

    Parameters
    ----------
    names : of modules
    x : two images (2, ...); with only one, nothing is checked

    Raises
    ------
    SqError : a module returns an output that cannot be split by image
    """
    if len(x) < 2:
        return
    of_two = outputs_of(net, names, x)
    of_first = outputs_of(net, names, x[:1])
    for (name, y), (_, first) in zip(of_two, of_first, strict=False):
        expected = (2 * len(first), *first.shape[1:])
        if tuple(y.shape) == expected:
            difference = float((y[: len(first)] - first).abs().max())
            mixes_images = difference > ROW_TOLERANCE * float(first.abs().max())
            if not mixes_images:
                continue
        raise SqError(
            f"layer {name} returns {tuple(first.shape)} for one image and {tuple(y.shape)} for "
            "two, not of each on its own: choose quantizer=sensiquant, which takes layers that mix "
            "images"
        )


def _rows(x: Tensor, images: int) -> Tensor:
    """Return `x` (k images, C, ...) as (images, k, ..., C).

    Channels are last in memory, so picking images copies whole rows.
    """
    return channels_last(x).unflatten(0, (images, -1))


def _channels_second(x: Tensor) -> Tensor:
    return x.movedim(-1, 1) if x.ndim > 2 else x
