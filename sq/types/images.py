"""Splits of images on disk or in memory, and batches as a network takes them. Plain data."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from PIL import Image
from torch import Tensor

# prepare(image, resized) -> (C, H, W) float32: an image as the network takes it; `resized` as in
# `Images`
Prepare = Callable[[Image.Image, bool], Tensor]


def without(ids: Iterable[str], others: Iterable[str]) -> list[str]:
    """Return those of `ids`, in their order, that are not among `others`."""
    excluded = set(others)
    return [name for name in ids if name not in excluded]


@dataclass(frozen=True)
class Objects:
    """What is to be found in one image."""

    boxes: Tensor  # (n, 4) float32: left, top, right, bottom, in pixels of the image as it is read
    classes: Tensor  # (n,) int64
    # (n,) bool: a region of many objects, which a prediction may match any number of times
    crowd: Tensor
    size: tuple[int, int]  # (height, width) of the image as it is read


@dataclass(frozen=True)
class Images:
    """A split: images on disk or in memory, which are read when they are needed."""

    ids: list[str]  # unique, and the same on every machine
    y: Tensor | list[Objects]  # labels (B,) int64, or the objects in each image
    read: Callable[[int], Image.Image]  # the image at a place; can be pickled, for worker processes
    # shorter side is what a centre crop is taken from: the network's resize is left out
    resized: bool = False
    # leave out an image that cannot be read, and say so; otherwise that is an error
    skip_corrupt: bool = False
    # processes that read and prepare; None: one a core, up to 8; 0: this one
    workers: int | None = 0


@dataclass(frozen=True)
class Batch:
    """Images as the network takes them, (B, C, H, W) float32.

    They have labels (B,) or objects, and unique ids.
    """

    x: Tensor
    y: Tensor | list[Objects]  # a label of -1: there is none
    ids: list[str]


@dataclass(frozen=True)
class Calibration(Batch):
    """The calibration images, and which inputs of a layer a solver's statistics are of.

    `inputs` is "reference", a layer's inputs in the full-precision network, or "quantized", its
    inputs once the layers before it are quantized.
    """

    inputs: str = "reference"
    left_out: tuple[str, ...] = ()  # ids of images that were drawn but could not be read
    # of images made rather than drawn: what that took, and figures
    made: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Dataset:
    """A training split, for calibration, and a disjoint split to evaluate on."""

    train: Images
    test: Images
    classes: int
    name: str  # of the image set: what a model's `expected` figures go by
    class_names: tuple[str, ...] = ()  # in the order of their numbers, where they are known

    def read_by(self, workers: int | None) -> Dataset:
        """Return this dataset with `workers` processes reading what leaves that open."""
        train, test = self.train, self.test
        if train.workers != 0:
            train = replace(train, workers=workers)
        if test.workers != 0:
            test = replace(test, workers=workers)
        return replace(self, train=train, test=test)
