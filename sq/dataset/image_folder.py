"""Images in folders, one for each class: ImageNet as it is unpacked everywhere, and any set laid out like it."""

import unicodedata
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
from annotated_types import Len
from PIL import Image

from sq.config.constraints import Count
from sq.config.data_paths import find
from sq.core.file_content import read_text
from sq.dataset.folders import Files, list_classes
from sq.dataset.image_file import colour
from sq.errors import SqError
from sq.runtime import torch_setup
from sq.types.images import Dataset, Images

SUFFIXES = (".jpeg", ".jpg", ".png", ".bmp", ".ppm", ".pgm", ".webp", ".tif", ".tiff")
IMAGENET = "imagenet"  # in place of a file: the 1,000 wnids of ILSVRC2012, in class-index order


def load(
    *,
    name: str,
    root: str,
    splits: Annotated[list[str], Len(2, 2)],
    classes: str | None,
    size: Count | None,
    resized: bool,
    skip_corrupt: bool,
) -> Dataset:
    """Load a training and an evaluation split from root/SPLIT/CLASS/*.

    Parameters
    ----------
    name : of the image set, by which a model's expected figures go
    root : the folder; a relative path is looked for here, then in $SQ_DATA
    splits : folders of the training and of the evaluation images
    classes : a file in `root` with one class a line, in class-index order: folders found are not a
    class list, for
        some may be missing. "imagenet" takes ILSVRC2012's; None numbers the training split's
        folders by name
    size : images the evaluation split has; None takes any number
    resized : the evaluation images' shorter side is what a centre crop is taken from, so they are
    not resized
    skip_corrupt : leave out images that cannot be read, instead of stopping

    Raises
    ------
    SqError : a folder is missing, empty or laid out otherwise, has a class that is not in the list,
    or another
        number of images than `size`
    """
    folder = find(root, "dataset.root")
    train, test = (list_classes(folder, use, SUFFIXES) for use in splits)
    order = [*train] if classes is None else _class_list(folder, classes)
    index = {_composed(own): i for i, own in enumerate(order)}
    for use, found in zip(splits, (train, test), strict=True):
        if unknown := [own for own in found if _composed(own) not in index]:
            raise SqError(
                f"{folder / use}: {len(unknown)} of {len(found)} folders are no class of "
                f"{'the training split' if classes is None else classes} ({', '.join(unknown[:3])}): "
                "correct dataset.classes, or remove them"
            )
    count = sum(len(files) for files in test.values())
    if size is not None and count != size:
        raise SqError(
            f"{folder / splits[1]} holds {count:,} images, {name} is evaluated on {size:,}: copy it again, or, for "
            "figures of another image set, choose it (dataset=imagenet_sample, dataset=image_folder)"
        )

    def split(use: str, found: dict[str, list[Path]], resized: bool) -> Images:
        files = [(index[_composed(own)], file) for own, files in found.items() for file in files]
        # An image's id names no folder of this machine, so calibration draws compare between
        # machines.
        ids = [f"{use}/{file.relative_to(folder / use).as_posix()}" for _, file in files]
        read = Coloured(Files([file for _, file in files]))
        return Images(
            ids, torch.tensor([i for i, _ in files]), read, resized, skip_corrupt, workers=None
        )

    return Dataset(
        split(splits[0], train, False),
        split(splits[1], test, resized),
        len(order),
        name,
        tuple(order),
    )


@dataclass(frozen=True)
class Coloured:
    """Reads files as RGB, as the training of the networks did."""

    files: Files

    def __call__(self, place: int) -> Image.Image:
        """Return the image at `place`; raise an `ImageError` if it cannot be read or has more than 8 bits a channel."""
        return colour(self.files(place))


def _class_list(folder: Path, classes: str) -> list[str]:
    if classes == IMAGENET:
        torch_setup.import_torchvision()
        from timm.data import ImageNetInfo

        return list(ImageNetInfo("imagenet-1k").label_names())
    file = folder / classes
    if not file.is_file():
        raise SqError(
            f"dataset.classes={classes}: no file {file}: one class a line, or {IMAGENET}, or null"
        )
    names = [_composed(line.strip()) for line in read_text(file).splitlines() if line.strip()]
    if len({*names}) != len(names) or not names:
        raise SqError(
            f"{file} names {len(names)} classes, {len({*names})} different ones: one class a line, each once"
        )
    return names


def _composed(name: str) -> str:
    """Return `name` with accents as one character each: macOS stores them as two."""
    return unicodedata.normalize("NFC", name)
