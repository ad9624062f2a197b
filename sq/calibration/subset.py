"""Subset: calibration images drawn at random from the training split, balanced over classes."""

import torch

from sq.errors import SqError
from sq.types import Dataset, Model, Split


def draw(model: Model, dataset: Dataset, *, images: int, seed: int) -> Split:
    """Draw images without replacement, classes in turn, so that class counts are equal as far as classes go.

    Parameters
    ----------
    images : how many, from 1 to the size of the training split
    seed : of the draw; the same seed gives the same images in the same order

    Raises
    ------
    SqError : `images` out of range
    """
    train = dataset.train
    if not 1 <= images <= len(train.ids):
        raise SqError(f"calibration.images={images}: the training split has 1 to {len(train.ids)} images to draw")
    shuffled = torch.randperm(len(train.ids), generator=torch.Generator().manual_seed(seed))
    labels = train.y[shuffled]
    turn = torch.empty_like(labels)  # an image's place among its class, in shuffled order
    for label in labels.unique():
        mine = labels == label
        turn[mine] = torch.arange(int(mine.sum()))
    chosen = shuffled[turn.argsort(stable=True)[:images]]
    return Split(train.x[chosen], train.y[chosen], [train.ids[i] for i in chosen.tolist()])
