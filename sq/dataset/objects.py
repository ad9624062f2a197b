"""Annotated images of one split, whichever COCO layout they are read from."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch

from sq.dataset.image_file import Header
from sq.errors import SqError
from sq.types.images import Objects

# class, left, top, width, height in pixels, crowd
Row = tuple[int, float, float, float, float, bool]


@dataclass(frozen=True)
class Annotated:
    """The images of a split and the objects in them."""

    paths: list[Path]
    objects: list[Objects]
    names: list[str]  # of the classes, by number
    # (height, width) that boxes are pixels of; None if the header is damaged
    sizes: list[tuple[int, int] | None]
    turned: bool  # boxes are of images turned by EXIF, if the size of an image does not tell


def to_objects(rows: list[Row], size: tuple[int, int]) -> Objects:
    """Return the objects of `rows` in an image of `size` (height, width)."""
    boxes: list[tuple[float, float, float, float]] = []
    classes: list[int] = []
    crowd: list[bool] = []
    for class_number, x, y, width, height, is_crowd in rows:
        boxes.append((x, y, x + width, y + height))
        classes.append(class_number)
        crowd.append(is_crowd)
    return Objects(
        torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        torch.tensor(classes, dtype=torch.int64),
        torch.tensor(crowd, dtype=torch.bool),
        size,
    )


def unique(rows: Iterable[Row]) -> list[Row]:
    """Return `rows` in their order without repetitions: a detector finds a repeated object once."""
    return list(dict.fromkeys(rows))


def turns(header: Header, size: tuple[int, int] | None, *, turned: bool) -> bool:
    """Return whether an image must be turned by its EXIF orientation to match its boxes.

    Parameters
    ----------
    size : (height, width) that boxes are pixels of; None if it is not known
    turned : the result if the size does not tell: the orientation mirrors or turns by 180 degrees,
        or the image is square

    Raises
    ------
    SqError : the image has another size, turned or not
    """
    if size is None or header.upright == header.size == size:
        return turned
    if size not in (header.size, header.upright):
        raise SqError(
            f"the file is {header.size[1]}x{header.size[0]}, its boxes are of an image of "
            f"{size[1]}x{size[0]}: correct width and height in the annotations, or copy the image "
            "they were made for"
        )
    return size == header.upright
