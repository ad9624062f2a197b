"""Subset: calibration images drawn at random from the training split, balanced over classes."""

from typing import Literal

import torch
from torch import Tensor

from sq.dataset import loading as reading
from sq.errors import SqError
from sq.storage.store import NOWHERE, Store
from sq.types.images import Calibration, Dataset, Objects, without
from sq.types.problem import Model


def draw(
    model: Model,
    dataset: Dataset,
    store: Store = NOWHERE,
    *,
    images: int,
    seed: int,
    inputs: Literal["reference", "quantized"],
) -> Calibration:
    """Draw images without replacement, classes in turn, so that class counts are equal as far as classes go.

    Of images with objects in them the class is that of the largest, and that of none where there
    are none.

    Parameters
    ----------
    store : left alone: drawing again is quick
    images : how many, from 1 to the size of the training split
    seed : of the draw; the same seed gives the same images in the same order
    inputs : handed on, see `sq.types.images.Calibration`

    Raises
    ------
    SqError : `images` out of range, or one that cannot be read
    """
    train = dataset.train
    if not 1 <= images <= len(train.ids):
        raise SqError(
            f"calibration.images={images}: the training split has 1 to {len(train.ids)} images to draw"
        )
    shuffled = torch.randperm(len(train.ids), generator=torch.Generator().manual_seed(seed))
    labels = (_largest(train.y) if isinstance(train.y, list) else train.y)[shuffled]
    order = labels.argsort(stable=True)
    _, counts = labels[order].unique_consecutive(return_counts=True)
    turn = torch.empty_like(labels)  # an image's place among its class, in shuffled order
    turn[order] = torch.cat([torch.arange(int(n)) for n in counts])
    chosen = shuffled[turn.argsort(stable=True)[:images]]
    drawn = reading.load(train, chosen.tolist(), model.prepare, "calibration images")
    left_out = without((train.ids[i] for i in chosen.tolist()), drawn.ids)
    return Calibration(drawn.x, drawn.y, drawn.ids, inputs, tuple(left_out))


def _largest(y: list[Objects]) -> Tensor:
    """Return (B,) the class of each image's largest object, -1 for none."""

    def of(own: Objects) -> int:
        if not len(own.classes):
            return -1
        return int(own.classes[((own.boxes[:, 2:] - own.boxes[:, :2]).prod(1)).argmax()])

    return torch.tensor([of(own) for own in y])
