"""CIFAR-10 (32x32 RGB, ten classes): folders of PNG images, or batches of the python archive."""

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

CLASSES, SIZE = 10, (32, 32)
TEST_IMAGES = 10_000  # of the original test split
MODES = ("RGB", "P", "L")  # Pillow modes of 8-bit images; a palette is lossless here
BATCHES = {
    "train": ["data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5"],
    "test": ["test_batch"],
}


def load(*, name: str, root: str, skip_corrupt: bool) -> Dataset:
    """Load both splits from root/{train,test}/CLASS/*.png, or from the batches of the archive.

    Classes are numbered in the order of their sorted names, as in the archive.

    Parameters
    ----------
    name : of the image set; that number is appended if the test split has not 10,000 images
    root : the folder; a relative path is looked for here, then in $SQ_DATA
    skip_corrupt : leave out images that cannot be read or are not 32x32 RGB, instead of stopping

    Raises
    ------
    SqError : the folder has another layout, there are not ten classes, or an archive's batch is
        damaged

    Source
    ------
    Krizhevsky 2009, Learning Multiple Layers of Features from Tiny Images.
    """
    folder = find(root, "dataset.root")
    if (folder / BATCHES["test"][0]).is_file():
        return _dataset(_from_archive(folder, "train"), _from_archive(folder, "test"), name)
    train = list_classes(folder, "train", (".png",))
    test = list_classes(folder, "test", (".png",))
    for split, classes in (("train", train), ("test", test)):
        if len(classes) != CLASSES:
            raise SqError(
                f"{folder / split} holds {len(classes)} class folders ({', '.join(classes)}), "
                f"CIFAR-10 has {CLASSES}"
            )
    differing = sorted({*train} ^ {*test})
    if differing:
        raise SqError(
            f"{folder}: train and test differ in {', '.join(differing)}: one class is one name"
        )
    return _dataset(
        _from_folders(folder, "train", train, skip_corrupt),
        _from_folders(folder, "test", test, skip_corrupt),
        name,
    )


def _dataset(train: Images, test: Images, name: str) -> Dataset:
    if len(test.ids) != TEST_IMAGES:
        name = f"{name}_{len(test.ids)}"
    return Dataset(train, test, CLASSES, name)


def _from_folders(
    folder: Path, split: str, classes: dict[str, list[Path]], skip_corrupt: bool
) -> Images:
    """Return the images of a split, class by class."""
    paths: list[Path] = []
    labels: list[int] = []
    for label, files in enumerate(classes.values()):
        paths += files
        labels += [label] * len(files)
    ids = [f"cifar10/{split}/{path.relative_to(folder / split).as_posix()}" for path in paths]
    reader = CheckedReader(Files(paths))
    return Images(ids, torch.tensor(labels), reader, skip_corrupt=skip_corrupt)


@dataclass(frozen=True)
class CheckedReader:
    """Reads image files, and checks that they are 32x32 in 8-bit colour."""

    files: Files

    def __call__(self, index: int) -> Image.Image:
        """Return image `index`; raise an `ImageError` if it is not 32x32 in 8-bit colour."""
        image = self.files(index)
        if image.size != SIZE or image.mode not in MODES:
            raise ImageError(
                f"it is {image.width}x{image.height} {image.mode}, CIFAR-10 images are 32x32 RGB"
            )
        return image.convert("RGB")


@dataclass(frozen=True)
class ArrayReader:
    """Reads images from an array (B, 32, 32, 3) of uint8."""

    pixels: np.ndarray

    def __call__(self, index: int) -> Image.Image:
        """Return image `index`."""
        return Image.fromarray(self.pixels[index])


def _from_archive(folder: Path, split: str) -> Images:
    """Return the images of a split from the batches of the python archive."""
    pixels: list[np.ndarray] = []
    labels: list[int] = []
    for name in BATCHES[split]:
        batch_pixels, batch_labels = _read_batch(folder / name)
        pixels.append(batch_pixels)
        labels += batch_labels
    ids = [f"cifar10/{split}/{i}" for i in range(len(labels))]
    return Images(ids, torch.tensor(labels), ArrayReader(np.concatenate(pixels)))


def _read_batch(file: Path) -> tuple[np.ndarray, list[int]]:
    """Return the pixels (B, 32, 32, 3) and labels of one batch of the archive."""
    batch = _unpickle(file)
    try:
        x = np.asarray(batch[b"data"]).reshape(-1, 3, *SIZE)
        y = [int(label) for label in batch[b"labels"]]
        # Checked for each batch: a missing label in one and a surplus one in another would mislabel
        # all images between.
        if x.dtype != np.uint8 or len(x) != len(y) or not 0 <= min(y) <= max(y) < CLASSES:
            raise ValueError(
                f"{len(x)} images of {x.dtype}, {len(y)} labels, not all of them 0 to 9"
            )
    except (KeyError, TypeError, ValueError) as error:
        raise SqError(
            f"{file} holds no images and labels ({error}): unpack cifar-10-python.tar.gz again"
        ) from error
    return x.transpose(0, 2, 3, 1), y


def _unpickle(file: Path) -> dict[bytes, Any]:
    """Return the content of `file`, only arrays and plain containers: a pickle can run code."""
    try:
        with file.open("rb") as stream:
            return _ArrayUnpickler(stream, encoding="bytes").load()
    except FileNotFoundError as error:
        raise SqError(
            f"no file {file}: a CIFAR-10 archive has "
            f"{', '.join(BATCHES['train'] + BATCHES['test'])}"
        ) from error
    except SqError:
        raise
    except Exception as error:  # damaged bytes can raise anything
        raise SqError(
            f"{file} is not a whole batch of CIFAR-10 ({error}): unpack the archive again"
        ) from error


class _ArrayUnpickler(pickle.Unpickler):
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
                f"a CIFAR-10 batch wants {module}.{name}, which could run foreign code: unpack it "
                "again"
            )
        return super().find_class(module.replace("numpy.core", "numpy._core"), name)
