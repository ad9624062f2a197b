"""Digits: scikit-learn's 1,797 handwritten digits, 8x8 grey, which come with the package."""

import torch

from sq.errors import SqError
from sq.types import Dataset, Split


def load(*, every: int) -> Dataset:
    """Load the digits with a fixed stratified split.

    Parameters
    ----------
    every : each class keeps its every `every`-th image for the test split, in the order of the source; 2 or more

    Raises
    ------
    SqError : `every` below 2, which would leave nothing to train on

    Returns
    -------
    Images (B, 1, 8, 8), grey levels 0 to 16 mapped to -1 to 1.

    Source
    ------
    Alpaydin and Kaynak 1998, Optical Recognition of Handwritten Digits, UCI (the test part).
    """
    if every < 2:
        raise SqError(f"dataset.every={every}: 2 or more, or no image is left to calibrate with")
    from sklearn.datasets import load_digits

    source = load_digits()
    x = torch.from_numpy(source.images).float().unsqueeze(1) / 8 - 1
    y = torch.from_numpy(source.target).long()
    place = torch.empty_like(y)  # an image's place within its class
    for digit in range(10):
        mine = y == digit
        place[mine] = torch.arange(int(mine.sum()))
    held_out = place % every == every - 1

    def split(mask: torch.Tensor) -> Split:
        return Split(x[mask], y[mask], [f"digits/{i}" for i in mask.nonzero().flatten().tolist()])

    return Dataset(split(~held_out), split(held_out), classes=10)
