"""CIFAR-10 as folders of PNG images: 32x32 in colour, ten classes."""

from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from annotated_types import Len
from PIL import Image

from sq.data import find
from sq.errors import SqError
from sq.types import Dataset, Positive, Split

CLASSES, SIZE = 10, (32, 32)
MODES = ("RGB", "P", "L")  # what 8-bit colour images are stored as; a palette is lossless here


def load(*, root: str, mean: Annotated[list[float], Len(3, 3)], std: Annotated[list[Positive], Len(3, 3)]) -> Dataset:
    """Load both splits from root/{train,test}/CLASS/*.png; a class's index is its place among the sorted names.

    Parameters
    ----------
    root : the folder; a relative path is looked for here, then in $SQ_DATA
    mean, std : red, green, blue, of values from 0 to 1: images are (value - mean) / std

    Raises
    ------
    SqError : a folder is missing or empty, there are not ten classes, an image is unreadable or of another size

    Returns
    -------
    Images (B, 3, 32, 32).

    Source
    ------
    Krizhevsky 2009, Learning Multiple Layers of Features from Tiny Images.
    """
    folder = find(root, "dataset.root")
    files = {use: _list(folder / use) for use in ("train", "test")}
    train, test = (list(classes) for classes in files.values())
    if train != test:
        raise SqError(
            f"{folder}: train and test differ in {', '.join(sorted({*train} ^ {*test}))}: one class is one name"
        )
    shift, scale = (torch.tensor(values).view(3, 1, 1) for values in (mean, std))

    def split(use: str) -> Split:
        found = [(index, file) for index, own in enumerate(files[use].values()) for file in own]
        pixels = torch.from_numpy(np.stack([_read(file) for _, file in found]))
        x = (pixels.permute(0, 3, 1, 2).float() / 255 - shift) / scale
        # An image's id names no folder of this machine, so calibration draws compare between machines.
        ids = [f"cifar10/{use}/{file.parent.name}/{file.name}" for _, file in found]
        return Split(x.contiguous(), torch.tensor([index for index, _ in found]), ids)

    return Dataset(split("train"), split("test"), CLASSES)


def _list(folder: Path) -> dict[str, list[Path]]:
    """Return the images of each class in `folder`, classes and images sorted by name."""
    if not folder.is_dir():
        raise SqError(f"no folder {folder}: dataset.root must hold train/CLASS/*.png and test/CLASS/*.png")
    classes = sorted(own for own in folder.iterdir() if own.is_dir() and not own.name.startswith("."))
    if len(classes) != CLASSES:
        names = ", ".join(own.name for own in classes) or "none"
        raise SqError(f"{folder} holds {len(classes)} class folders ({names}), CIFAR-10 has {CLASSES}")
    found = {own.name: sorted(own.glob("*.png")) for own in classes}
    if empty := [name for name, images in found.items() if not images]:
        raise SqError(f"{folder}: no images (*.png) in {', '.join(empty)}: copy them again")
    return found


def _read(file: Path) -> np.ndarray:
    """Return the image in `file` as (32, 32, 3) uint8."""
    try:
        with Image.open(file) as image:
            size, mode = image.size, image.mode
            pixels = np.array(image.convert("RGB")) if size == SIZE and mode in MODES else None
    except Exception as error:  # damaged bytes raise whatever they happen to decode to
        raise SqError(f"{file} is not a whole image ({error}): copy it again or remove it") from error
    if pixels is None:
        raise SqError(f"{file} is {size[0]}x{size[1]} {mode}, CIFAR-10 images are 32x32 RGB: repair or remove it")
    return pixels
