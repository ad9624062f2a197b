"""Digits: scikit-learn's 1,797 handwritten digits, 8x8 grey, which come with the package."""

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from sq.errors import SqError
from sq.types.images import Dataset, Images

FILE = "datasets/data/digits.csv.gz"  # in scikit-learn, whose import takes as long as that of torch


def load(*, name: str, every: int) -> Dataset:
    """Load the digits with a fixed stratified split.

    Parameters
    ----------
    name : of the image set
    every : each class keeps its every `every`-th image for the test split, in the order of the
    source; 2 or more

    Raises
    ------
    SqError : `every` below 2, which would leave nothing to train on

    Returns
    -------
    Grey images, 8x8, of levels 0 to 16.

    Source
    ------
    Alpaydin and Kaynak 1998, Optical Recognition of Handwritten Digits, UCI (the test part).
    """
    if every < 2:
        raise SqError(f"dataset.every={every}: 2 or more, or no image is left to calibrate with")
    rows = _rows()
    pixels, y = rows[:, :-1].reshape(-1, 8, 8), torch.from_numpy(rows[:, -1]).long()
    place = torch.empty_like(y)  # an image's place within its class
    for digit in range(10):
        mine = y == digit
        place[mine] = torch.arange(int(mine.sum()))
    held_out = place % every == every - 1

    def split(mask: torch.Tensor) -> Images:
        ids = [f"digits/{i}" for i in mask.nonzero().flatten().tolist()]
        return Images(ids, y[mask], Grey(pixels[mask.numpy()]))

    return Dataset(split(~held_out), split(held_out), 10, name)


def _rows() -> np.ndarray:
    """Return the 64 pixels and the class of each image, (N, 65) uint8."""
    package = find_spec("sklearn")
    file = Path(package.origin).parent / FILE if package and package.origin else None
    if file and file.exists():
        return np.loadtxt(file, delimiter=",").astype(np.uint8)
    from sklearn.datasets import load_digits  # of a version that keeps its files elsewhere

    source = load_digits()
    return np.column_stack([source.data, source.target]).astype(np.uint8)


@dataclass(frozen=True)
class Grey:
    """Reads images from an array (B, H, W) of uint8."""

    pixels: np.ndarray

    def __call__(self, place: int) -> Image.Image:
        """Return the image at `place`."""
        return Image.fromarray(self.pixels[place])
