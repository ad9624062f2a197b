"""Training images by steps: kept in memory, or read again in each epoch with random crops.

The order of an epoch and all random draws follow from the seed, the epoch and the image. So any
step can be the first, and a resumed run needs no saved state of the data.
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
CROP_STREAM = 1  # seeds of crops differ by it from other seeds of the same epoch
CROP_TRIES = 10  # to draw a crop that lies within the image
LOG_ASPECT = math.log(4 / 3)  # of a crop's width over its height, at most, either way

Step = tuple[int, Tensor, Tensor]  # number, images (batch, C, H, W), labels (batch,)


class TrainingFeed(Protocol):
    """Training images, and the seed of all random draws."""

    count: int
    seed: int

    def steps(self, batch: int, first: int, last: int) -> Iterator[Step]:
        """Yield steps `first` to `last` - 1; an epoch has count // batch steps."""
        ...


class MemoryFeed:
    """Images that are read once and kept in memory.

    Parameters
    ----------
    x, y : images (N, C, H, W) and labels (N,)
    seed : of their order
    """

    def __init__(self, x: Tensor, y: Tensor, seed: int):
        self.x, self.y, self.seed, self.count = x, y, seed, len(x)

    def steps(self, batch: int, first: int, last: int) -> Iterator[Step]:
        """Yield steps, see `TrainingFeed`."""
        for step in range(first, last):
            epoch, position = divmod(step, self.count // batch)
            if position == 0 or step == first:
                epoch_order = order(self.count, self.seed, epoch)
            index = epoch_order[position * batch :][:batch]
            yield step, self.x[index], self.y[index]


class StreamFeed:
    """Images that worker processes read when they are needed, with random crops.

    Parameters
    ----------
    split : where they are read from
    chosen : indices in the split
    prepare : prepares a crop for the network, without cutting anything off
    size : (H, W), of the network's input
    crop : least and largest share of an image in a crop; its width over height is 3/4 to 4/3
    seed : of the order of images, and of crops
    device : of the batches
    """

    def __init__(  # noqa: PLR0913 (an image and its processing)
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
        self.split, self.chosen, self.count = split, list(chosen), len(chosen)
        self.prepare, self.size, self.device = prepare, size, device
        self.crop, self.seed = (crop[0], crop[1]), seed

    def steps(self, batch: int, first: int, last: int) -> Iterator[Step]:
        """Yield steps, see `TrainingFeed`. Unreadable images are missing in them.

        A step without any readable image is left out.

        Raises
        ------
        SqError : at the first image that cannot be read, unless such images may be skipped
        """
        steps_per_epoch = self.count // batch
        while first < last:
            epoch, position = divmod(first, steps_per_epoch)
            steps = min(last - first, steps_per_epoch - position)  # left of this epoch
            epoch_order = order(self.count, self.seed, epoch)
            index = epoch_order[position * batch :][: steps * batch]
            yield from self._epoch([self.chosen[i] for i in index], epoch, batch, first)
            first += steps

    def _epoch(self, images: list[int], epoch: int, batch: int, first: int) -> Iterator[Step]:
        """Yield the steps of the images of one epoch, from step `first` on."""
        reader = _CropReader(self.split, self.size, self.crop, (self.seed, epoch, CROP_STREAM))
        crops = replace(self.split, read=reader, resized=True)
        # Batches with unreadable images are recognised by the id of the first that is left.
        step_of_id = {self.split.ids[i]: first + n // batch for n, i in enumerate(images)}
        batches = loading.batches(
            crops, images, self.prepare, batch, "training images", at_once=True
        )
        for loaded in batches:
            assert isinstance(loaded.y, Tensor)
            x = batching.to_device(loaded.x, self.device)
            yield step_of_id[loaded.ids[0]], x, loaded.y.to(self.device)


@dataclass(frozen=True)
class _CropReader:
    """Reads a random crop of an image, at the size of the network's input."""

    split: Images
    size: tuple[int, int]
    crop: tuple[float, float]
    seeds: tuple[int, ...]  # of the crop, beside the index

    def __call__(self, index: int) -> Image.Image:
        image = self.split.read(index)
        box = random_crop(image.width, image.height, self.crop, seeded(*self.seeds, index))
        if image.mode != "L":
            image = image.convert("RGB")
        return image.resize(self.size[::-1], Image.Resampling.BILINEAR, box=box)


def random_crop(
    width: int, height: int, crop: tuple[float, float], draw: torch.Generator
) -> tuple[int, int, int, int]:
    """Return left, top, right, bottom of a random crop; the middle square if none fits.

    The share of its area is uniform between those of `crop`. Its aspect ratio lies between 3:4 and
    4:3, uniform in logarithms: the "random resized crop" of ImageNet (Szegedy et al. 2015, arXiv
    1409.4842, section 6).
    """
    for _ in range(CROP_TRIES):
        area, shape, right, down = torch.rand(4, generator=draw).tolist()
        pixels = width * height * (crop[0] + area * (crop[1] - crop[0]))
        aspect = math.exp(LOG_ASPECT * (2 * shape - 1))
        w, h = round(math.sqrt(pixels * aspect)), round(math.sqrt(pixels / aspect))
        if 0 < w <= width and 0 < h <= height:
            left, top = int(right * (width - w + 1)), int(down * (height - h + 1))
            return left, top, left + w, top + h
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    return left, top, left + side, top + side


def order(count: int, seed: int, epoch: int) -> Tensor:
    """Return the numbers (count,) of the images in the order of an epoch."""
    return torch.randperm(count, generator=seeded(seed, epoch))


def check(problem: Problem) -> Images:
    """Return the training split of a problem, after a check that it can be trained on.

    Raises
    ------
    SqError : there are no training images, or they have no labels
    """
    split = problem.train
    if split is None or not split.ids:
        raise SqError(
            "there are no training images: choose a dataset with a training split, or "
            "quantizer=eptq"
        )
    if not isinstance(split.y, Tensor) or int(split.y.min()) < 0:
        raise SqError(
            "training takes images with class labels: choose quantizer=eptq for this dataset"
        )
    return split


def choose(problem: Problem, count: int | None, crop: Crop | None, seed: int) -> TrainingFeed:
    """Return the training images of a problem.

    Parameters
    ----------
    count : images of the training split, drawn at random; None takes all
    crop : see `StreamFeed`; None reads whole images once and keeps them in memory
    seed : of the choice of images, of their order, and of crops

    Raises
    ------
    SqError : see `check`; the images do not fit in memory
    """
    split = check(problem)
    generator = torch.Generator().manual_seed(seed)
    permutation = torch.randperm(len(split.ids), generator=generator)
    chosen = permutation[:count].sort().values.tolist()
    images, prepare = problem.batch.x, problem.model.prepare
    device, shape = images.device, tuple(images.shape[1:])
    if crop is not None:
        if crop[0] > crop[1]:
            raise SqError(
                f"quantizer.train.crop={crop}: the least share of an image first, then the "
                f"largest: {crop[::-1]}"
            )
        size = (shape[-2], shape[-1])
        return StreamFeed(split, chosen, prepare, size=size, crop=crop, seed=seed, device=device)
    _check_memory(len(chosen), shape, device)
    batch = loading.load(split, chosen, prepare, "training images")
    assert isinstance(batch.y, Tensor)
    return MemoryFeed(batching.to_device(batch.x, device), batch.y.to(device), seed)


def _check_memory(count: int, shape: tuple[int, ...], device: torch.device) -> None:
    """Raise an `SqError` unless `count` images of float32 take at most half of the free memory."""
    need = 4 * count * math.prod(shape)  # bytes
    free = memory.available(device)
    # All images exist twice for a moment: as batches, and as one tensor of these.
    if 2 * need > free:
        raise SqError(
            f"{count} training images take {need / memory.GIB:.3g} GiB, and half of the "
            f"{free / memory.GIB:.3g} GiB that are free may be used: set "
            "quantizer.train.crop=[0.08,1.0] to read them when they are needed, or "
            f"quantizer.images={int(free // 2 // (need // count))} or less"
        )
