"""What is made of every image once and needed again and again: kept as far as memory allows, else made anew."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from sq.core.progress import say
from sq.errors import SqError
from sq.network import hooks
from sq.network.forward import forward
from sq.storage.store import GIB

# Of images by number (B,): tensors (B, ...), or (k B, ...) with the k parts of each image one after
# the other.
Make = Callable[[Tensor], list[Tensor]]
CLOSE = 1e-3  # of the largest number: sums in another order differ by less


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
        return [_unpacked(own[index].flatten(0, 1)) for own in self.all]

    def _fill(self) -> None:
        first, *rest = torch.arange(self.images).split(self.size)
        made = self.make(first)
        need = sum(own.numel() * own.element_size() for own in made) / len(first) * self.images
        if need > self.limit:
            self.streamed = True
            say(
                f"targets take {need / GIB:.2g} GiB, quantizer.memory_gib={self.limit / GIB:g}: made anew each step"
            )
            return
        rows = [_rows(own, len(first)) for own in made]
        self.all = [own.new_empty((self.images, *own.shape[1:])) for own in rows]
        for part in (first, *rest):
            made = made if part is first else self.make(part)
            for all_, own in zip(self.all, made, strict=True):
                all_[part] = _rows(own, len(part))


@torch.no_grad()
def check_rows(net: nn.Module, names: list[str], x: Tensor) -> None:
    """See that what modules of `net` return has rows for each image, those of one image after those of the other.

    Parameters
    ----------
    names : of modules
    x : two images (2, ...); of one alone nothing can be seen

    Raises
    ------
    SqError : a module returns what cannot be told apart by image
    """
    if len(x) < 2:
        return
    own = {name: net.get_submodule(name) for name in names}
    both, one = _returned(net, own, x), _returned(net, own, x[:1])
    for (name, y), (_, first) in zip(both, one, strict=False):
        shapes = tuple(y.shape), (2 * len(first), *first.shape[1:])
        if shapes[0] != shapes[1] or float((y[: len(first)] - first).abs().max()) > CLOSE * float(
            first.abs().max()
        ):
            raise SqError(
                f"layer {name} returns {tuple(first.shape)} for one image and {tuple(y.shape)} for two, not of each on "
                "its own: choose quantizer=sensiquant, which takes layers that mix images"
            )


def _returned(net: nn.Module, own: dict[str, nn.Module], x: Tensor) -> list[tuple[str, Tensor]]:
    found: list[tuple[str, Tensor]] = []
    with hooks.returning(own, lambda name, module, y: found.append((name, y.clone()))):
        forward(net, x)
    return found


def _rows(x: Tensor, images: int) -> Tensor:
    """Return `x` (k images, C, ...) as (images, k, ..., C): channels are last, so that picking copies whole rows."""
    return (x.movedim(1, -1) if x.ndim > 2 else x).unflatten(0, (images, -1))


def _unpacked(x: Tensor) -> Tensor:
    return x.movedim(-1, 1) if x.ndim > 2 else x
