"""Digits: the 1,797 handwritten digits (8x8, grey) that scikit-learn contains."""

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from sq.errors import SqError
from sq.types.images import Dataset, Images

# In the folder of scikit-learn, whose import would take as long as that of torch.
FILE = "datasets/data/digits.csv.gz"


def load(*, name: str, every: int) -> Dataset:
    """Load the digits with a fixed stratified split.

    Parameters
    ----------
    name : of the image set
    every : of each class, every `every`-th image in the order of the source belongs to the test
        split; 2 or more

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
    pixels = rows[:, :-1].reshape(-1, 8, 8)
    y = torch.from_numpy(rows[:, -1]).long()
    index_in_class = torch.empty_like(y)
    for digit in range(10):
        of_class = y == digit
        index_in_class[of_class] = torch.arange(int(of_class.sum()))
    is_test = index_in_class % every == every - 1

    def split(mask: torch.Tensor) -> Images:
        ids = [f"digits/{i}" for i in mask.nonzero().flatten().tolist()]
        return Images(ids, y[mask], GreyReader(pixels[mask.numpy()]))

    return Dataset(split(~is_test), split(is_test), 10, name)


def _rows() -> np.ndarray:
    """Return the 64 pixels and the class of each image, (N, 65) uint8."""
    package = find_spec("sklearn")
    if package and package.origin:
        file = Path(package.origin).parent / FILE
        if file.exists():
            return np.loadtxt(file, delimiter=",").astype(np.uint8)
    from sklearn.datasets import load_digits  # for versions with their files elsewhere

    source = load_digits()
    return np.column_stack([source.data, source.target]).astype(np.uint8)


@dataclass(frozen=True)
class GreyReader:
    """Reads images from an array (B, H, W) of uint8."""

    pixels: np.ndarray

    def __call__(self, index: int) -> Image.Image:
        """Return image `index`."""
        return Image.fromarray(self.pixels[index])
