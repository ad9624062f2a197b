"""What both layouts of COCO leave of a split, whatever file said it."""

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
    """The images of a split and what is to be found in them."""

    paths: list[Path]
    objects: list[Objects]
    names: list[str]  # of the classes, in the order of their numbers
    # (height, width) that boxes are pixels of; None: the header is damaged
    sizes: list[tuple[int, int] | None]
    turned: bool  # boxes are of images turned as EXIF says, where their size does not tell


def to_objects(rows: list[Row], size: tuple[int, int]) -> Objects:
    """Return objects for `rows` in an image of `size` (height, width)."""
    boxes = torch.tensor(
        [(x, y, x + w, y + h) for _, x, y, w, h, _ in rows], dtype=torch.float32
    ).reshape(-1, 4)
    classes = torch.tensor([row[0] for row in rows], dtype=torch.int64)
    return Objects(boxes, classes, torch.tensor([row[5] for row in rows], dtype=torch.bool), size)


def unique(rows: Iterable[Row]) -> list[Row]:
    """Return `rows` in their order, each once: of an object given twice, a detector finds one."""
    return list(dict.fromkeys(rows))


def turns(header: Header, size: tuple[int, int] | None, *, turned: bool) -> bool:
    """Return whether an image must be turned as its EXIF orientation says, to be the one that its boxes are of.

    Parameters
    ----------
    size : (height, width) that boxes are pixels of; None where it is not known
    turned : the answer where the size does not tell: the orientation mirrors or turns by 180
    degrees, or the image is
        square

    Raises
    ------
    SqError : the image is of another size, turned or not
    """
    if size is None or header.upright == header.size == size:
        return turned
    if size not in (header.size, header.upright):
        raise SqError(
            f"the file is {header.size[1]}x{header.size[0]}, its boxes are of an image of {size[1]}x{size[0]}: "
            "correct width and height in the annotations, or copy the image they were made for"
        )
    return size == header.upright
