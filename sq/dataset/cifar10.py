"""CIFAR-10, 32x32 in colour, ten classes: as folders of PNG images, or the batches of the original python archive."""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from sq.config.data_paths import find
from sq.dataset.folders import Files, list_classes
from sq.errors import ImageError, SqError
from sq.types.images import Dataset, Images

CLASSES, SIZE, WHOLE = 10, (32, 32), 10_000  # WHOLE: images of the test split
MODES = ("RGB", "P", "L")  # what 8-bit colour images are stored as; a palette is lossless here
BATCHES = {"train": [f"data_batch_{i}" for i in range(1, 6)], "test": ["test_batch"]}


def load(*, name: str, root: str, skip_corrupt: bool) -> Dataset:
    """Load both splits from root/{train,test}/CLASS/*.png, or from root/{data_batch_1..5,test_batch}.

    A class's index is its place among the sorted names, which is also how the archive numbers them.

    Parameters
    ----------
    name : of the image set; with another number of test images than CIFAR-10's 10,000, it ends in
    that number
    root : the folder; a relative path is looked for here, then in $SQ_DATA
    skip_corrupt : leave out images that cannot be read or are not 32x32 RGB, instead of stopping

    Raises
    ------
    SqError : the folder is laid out otherwise, there are not ten classes, or an archive's batch is
    damaged

    Source
    ------
    Krizhevsky 2009, Learning Multiple Layers of Features from Tiny Images.
    """
    folder = find(root, "dataset.root")
    if (folder / BATCHES["test"][0]).is_file():
        train, test = (_from_archive(folder, use) for use in BATCHES)
        return _dataset(train, test, name)
    listed = {use: list_classes(folder, use, (".png",)) for use in ("train", "test")}
    for use, classes in listed.items():
        if len(classes) != CLASSES:
            raise SqError(
                f"{folder / use} holds {len(classes)} class folders ({', '.join(classes)}), CIFAR-10 has {CLASSES}"
            )
    if differing := sorted({*listed["train"]} ^ {*listed["test"]}):
        raise SqError(
            f"{folder}: train and test differ in {', '.join(differing)}: one class is one name"
        )

    def split(use: str) -> Images:
        found = [(index, file) for index, own in enumerate(listed[use].values()) for file in own]
        ids = [f"cifar10/{use}/{file.relative_to(folder / use).as_posix()}" for _, file in found]
        y = torch.tensor([index for index, _ in found])
        return Images(ids, y, Small(Files([file for _, file in found])), skip_corrupt=skip_corrupt)

    return _dataset(split("train"), split("test"), name)


def _dataset(train: Images, test: Images, name: str) -> Dataset:
    return Dataset(
        train, test, CLASSES, name if len(test.ids) == WHOLE else f"{name}_{len(test.ids)}"
    )


@dataclass(frozen=True)
class Small:
    """Reads files and makes sure that the images are CIFAR-10's."""

    files: Files

    def __call__(self, place: int) -> Image.Image:
        """Return the image at `place`; raise an `ImageError` if it is not 32x32 in 8-bit colour."""
        image = self.files(place)
        if image.size != SIZE or image.mode not in MODES:
            raise ImageError(
                f"it is {image.width}x{image.height} {image.mode}, CIFAR-10 images are 32x32 RGB"
            )
        return image.convert("RGB")


@dataclass(frozen=True)
class Stored:
    """Reads images from an array (B, 32, 32, 3) of uint8."""

    pixels: np.ndarray

    def __call__(self, place: int) -> Image.Image:
        """Return the image at `place`."""
        return Image.fromarray(self.pixels[place])


def _from_archive(folder: Path, use: str) -> Images:
    pixels, labels = [], []
    for name in BATCHES[use]:
        batch = _unpickle(folder / name)
        try:
            x, y = (
                np.asarray(batch[b"data"]).reshape(-1, 3, *SIZE),
                [int(label) for label in batch[b"labels"]],
            )
            # Batch by batch: a label too few here and one too many there would mislabel all
            # between.
            if x.dtype != np.uint8 or len(x) != len(y) or not 0 <= min(y) <= max(y) < CLASSES:
                raise ValueError(
                    f"{len(x)} images of {x.dtype}, {len(y)} labels, not all of them 0 to 9"
                )
        except (KeyError, TypeError, ValueError) as error:
            raise SqError(
                f"{folder / name} holds no images and labels ({error}): unpack cifar-10-python.tar.gz again"
            ) from error
        pixels.append(x.transpose(0, 2, 3, 1))
        labels += y
    return Images(
        [f"cifar10/{use}/{i}" for i in range(len(labels))],
        torch.tensor(labels),
        Stored(np.concatenate(pixels)),
    )


def _unpickle(file: Path) -> dict[bytes, Any]:
    """Return what `file` holds, reading arrays and plain containers only: a pickle can run code."""
    try:
        with file.open("rb") as stream:
            return _Plain(stream, encoding="bytes").load()
    except FileNotFoundError as error:
        raise SqError(
            f"no file {file}: a CIFAR-10 archive has {', '.join(BATCHES['train'] + BATCHES['test'])}"
        ) from error
    except SqError:
        raise
    except Exception as error:  # damaged bytes raise whatever they happen to decode to
        raise SqError(
            f"{file} is not a whole batch of CIFAR-10 ({error}): unpack the archive again"
        ) from error


class _Plain(pickle.Unpickler):
    ALLOWED = (
        ("numpy.core.multiarray", "_reconstruct"),
        ("numpy._core.multiarray", "_reconstruct"),
        ("numpy", "ndarray"),
        ("numpy", "dtype"),
        ("_codecs", "encode"),
    )

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.ALLOWED:
            raise SqError(
                f"a CIFAR-10 batch wants {module}.{name}, which could run foreign code: unpack it again"
            )
        return super().find_class(module.replace("numpy.core", "numpy._core"), name)
