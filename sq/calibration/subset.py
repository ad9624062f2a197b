"""Subset: calibration images drawn at random from the training split, balanced over classes."""

from typing import Literal

import torch
from torch import Tensor

from sq.dataset import loading
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
    """Draw images without replacement, with equal class counts as far as classes have images.

    The class of an image for detection is that of its largest object; images without objects are a
    class of their own.

    Parameters
    ----------
    store : not used, drawing again is fast
    images : number of images, from 1 to the size of the training split
    seed : of the draw; the same seed gives the same images in the same order
    inputs : passed on, see `sq.types.images.Calibration`

    Raises
    ------
    SqError : `images` out of range, or one that cannot be read
    """
    train = dataset.train
    if not 1 <= images <= len(train.ids):
        raise SqError(
            f"calibration.images={images}: allowed are 1 to {len(train.ids)}, the size of the "
            "training split"
        )
    shuffled = torch.randperm(len(train.ids), generator=torch.Generator().manual_seed(seed))
    labels = _largest_class(train.y) if isinstance(train.y, list) else train.y
    labels = labels[shuffled]
    # Stable sorts keep the shuffled order within a class.
    by_class = labels.argsort(stable=True)
    _, counts = labels[by_class].unique_consecutive(return_counts=True)
    rank = torch.empty_like(labels)  # of an image within its class, in shuffled order
    rank[by_class] = torch.cat([torch.arange(int(n)) for n in counts])
    # First an image of each class, then a second one of each class, and so on.
    chosen = shuffled[rank.argsort(stable=True)[:images]]
    drawn = loading.load(train, chosen.tolist(), model.prepare, "calibration images")
    left_out = without((train.ids[i] for i in chosen.tolist()), drawn.ids)
    return Calibration(drawn.x, drawn.y, drawn.ids, inputs, tuple(left_out))


def _largest_class(y: list[Objects]) -> Tensor:
    """Return the class of each image's largest object, (B,); -1 for an image without objects."""
    classes = []
    for objects in y:
        if not len(objects.classes):
            classes.append(-1)
            continue
        sizes = objects.boxes[:, 2:] - objects.boxes[:, :2]
        largest = sizes.prod(1).argmax()
        classes.append(int(objects.classes[largest]))
    return torch.tensor(classes)
