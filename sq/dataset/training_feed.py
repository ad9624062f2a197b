"""Where the images of training come from, a step at a time: kept in memory, or read anew each epoch, cropped at random.

The order of an epoch and all that is drawn follow from the seed, the epoch and the image, so that
any step can be the first: nothing has to be kept to take training up again.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Protocol

import torch
from annotated_types import Len
from PIL import Image
from torch import Tensor

from sq.config.constraints import Share
from sq.dataset import loading
from sq.errors import SqError
from sq.runtime import batching, memory
from sq.runtime.monte_carlo import seeded
from sq.types.images import Images, Prepare
from sq.types.problem import Problem

Crop = Annotated[list[Share], Len(2, 2)]  # the least and the largest share of an image
PART = 1  # tells the numbers that parts are drawn by from others of the same epoch
TRIES = 10  # at a crop that lies within the image
ASPECT = math.log(4 / 3)  # of a crop's width over its height, at most, either way


class Feed(Protocol):
    """Training images, and the seed of all that is drawn of them."""

    count: int
    seed: int

    def steps(self, batch: int, first: int, last: int) -> Iterator[tuple[int, Tensor, Tensor]]:
        """Yield number, images (batch, C, H, W) and labels of steps `first` to `last` - 1, count // batch an epoch."""
        ...


class Memory:
    """Images that were read once, and are kept.

    Parameters
    ----------
    x, y : images (N, C, H, W) and labels (N,)
    seed : of their order
    """

    def __init__(self, x: Tensor, y: Tensor, seed: int):
        self.x, self.y, self.seed, self.count = x, y, seed, len(x)

    def steps(self, batch: int, first: int, last: int) -> Iterator[tuple[int, Tensor, Tensor]]:
        """Yield steps, see `Feed`."""
        for step in range(first, last):
            epoch, place = divmod(step, self.count // batch)
            if place == 0 or step == first:
                whole = order(self.count, self.seed, epoch)
            index = whole[place * batch :][:batch]
            yield step, self.x[index], self.y[index]


class Stream:
    """Images that are read when they are needed, by worker processes, of which a part is taken at random.

    Parameters
    ----------
    split : where they are read from
    chosen : places in the split
    prepare : makes them what the network takes; nothing of the part is cut off by it
    size : (H, W), what the network takes
    crop : shares of an image that a part has, at least and at most; width over height is 3/4 to 4/3
    seed : of their order, and of parts
    device : to put them on
    """

    def __init__(  # noqa: PLR0913 (an image and what becomes of it)
        self,
        split: Images,
        chosen: Sequence[int],
        prepare: Prepare,
        *,
        size: tuple[int, int],
        crop: Sequence[float],
        seed: int,
        device: torch.device,
    ):
        self.split, self.chosen, self.prepare, self.size = split, list(chosen), prepare, size
        self.crop, self.seed, self.device, self.count = (
            (crop[0], crop[1]),
            seed,
            device,
            len(chosen),
        )

    def steps(self, batch: int, first: int, last: int) -> Iterator[tuple[int, Tensor, Tensor]]:
        """Yield steps, see `Feed`; of images that could not be read, they have none, and none at all is left out.

        Raises
        ------
        SqError : at the first image that cannot be read, unless these are to be left out
        """
        each = self.count // batch
        while first < last:
            epoch, place = divmod(first, each)
            until = min(last - first, each - place)
            index = order(self.count, self.seed, epoch)[place * batch :][: until * batch]
            parts = replace(
                self.split,
                read=_Part(self.split, self.size, self.crop, (self.seed, epoch, PART)),
                resized=True,
            )
            wanted = [self.chosen[i] for i in index]
            number = {self.split.ids[i]: first + n // batch for n, i in enumerate(wanted)}
            for given in loading.batches(
                parts, wanted, self.prepare, batch, "training images", at_once=True
            ):
                assert isinstance(given.y, Tensor)
                yield (
                    number[given.ids[0]],
                    batching.to_device(given.x, self.device),
                    given.y.to(self.device),
                )
            first += until


@dataclass(frozen=True)
class _Part:
    """Reads a part of an image, drawn at random, at the size that the network takes."""

    split: Images
    size: tuple[int, int]
    crop: tuple[float, float]
    numbers: tuple[int, ...]  # that what is drawn follows from, beside the place

    def __call__(self, place: int) -> Image.Image:
        image = self.split.read(place)
        box = part(image.width, image.height, self.crop, seeded(*self.numbers, place))
        colours = image if image.mode == "L" else image.convert("RGB")
        return colours.resize(self.size[::-1], Image.Resampling.BILINEAR, box=box)


def part(
    width: int, height: int, crop: tuple[float, float], draw: torch.Generator
) -> tuple[int, int, int, int]:
    """Return left, top, right, bottom of a part drawn at random; the middle where none lay within the image.

    Its area is a share of the image between those of `crop`, its shape lies between 3:4 and 4:3,
    evenly in logarithms: the "random resized crop" of ImageNet (Szegedy et al. 2015, arXiv
    1409.4842, section 6).
    """
    for _ in range(TRIES):
        area, shape, right, down = torch.rand(4, generator=draw).tolist()
        pixels = width * height * (crop[0] + area * (crop[1] - crop[0]))
        aspect = math.exp(ASPECT * (2 * shape - 1))
        w, h = round(math.sqrt(pixels * aspect)), round(math.sqrt(pixels / aspect))
        if 0 < w <= width and 0 < h <= height:
            left, top = int(right * (width - w + 1)), int(down * (height - h + 1))
            return left, top, left + w, top + h
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    return left, top, left + side, top + side


def order(count: int, seed: int, epoch: int) -> Tensor:
    """Return the numbers (count,) of images in the order of an epoch."""
    return torch.randperm(count, generator=seeded(seed, epoch))


def check(problem: Problem) -> Images:
    """Return the training split of a problem, if it can be trained on.

    Raises
    ------
    SqError : no training images, or without labels
    """
    split = problem.train
    if split is None or not split.ids:
        raise SqError(
            "there are no training images: choose a dataset with a training split, or quantizer=eptq"
        )
    if not isinstance(split.y, Tensor) or int(split.y.min()) < 0:
        raise SqError(
            "training takes images with labels, of classes: choose quantizer=eptq for this dataset"
        )
    return split


def choose(problem: Problem, wanted: int | None, crop: Crop | None, seed: int) -> Feed:
    """Return the training images of a problem.

    Parameters
    ----------
    wanted : images of the training split, drawn at random; None takes all
    crop : see `Stream`; None reads them once, whole, and keeps them in memory
    seed : of which are drawn, of their order, and of parts

    Raises
    ------
    SqError : see `check`; more than memory holds
    """
    split = check(problem)
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(len(split.ids), generator=generator)[:wanted].sort().values.tolist()
    device, prepare, shape = (
        problem.batch.x.device,
        problem.model.prepare,
        tuple(problem.batch.x.shape[1:]),
    )
    if crop is not None:
        if crop[0] > crop[1]:
            raise SqError(
                f"quantizer.train.crop={crop}: the least share of an image first, then the largest: {crop[::-1]}"
            )
        size = (shape[-2], shape[-1])
        return Stream(split, chosen, prepare, size=size, crop=crop, seed=seed, device=device)
    _check_memory(len(chosen), shape, device)
    batch = loading.load(split, chosen, prepare, "training images")
    assert isinstance(batch.y, Tensor)
    return Memory(batching.to_device(batch.x, device), batch.y.to(device), seed)


def _check_memory(count: int, shape: tuple[int, ...], device: torch.device) -> None:
    need, free = 4 * count * math.prod(shape), memory.available(device)
    if 2 * need > free:  # they are put together from parts
        raise SqError(
            f"{count} training images take {need / memory.GIB:.3g} GiB, and half of the {free / memory.GIB:.3g} GiB "
            "that are free may be used: set quantizer.train.crop=[0.08,1.0] to read them when they are needed, or "
            f"quantizer.images={int(free // 2 // (need // count))} or less"
        )
