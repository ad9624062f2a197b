"""Images in one folder per class: ImageNet as it is usually unpacked, and sets with that layout."""

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
# In place of a file of classes: the 1,000 wnids of ILSVRC2012, in the order of class indices.
IMAGENET = "imagenet"


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
    name : of the image set; the expected accuracy of a model is looked up by it
    root : the folder; a relative path is looked for here, then in $SQ_DATA
    splits : folders of the training and of the evaluation images
    classes : a file in `root` with one class per line, in the order of class indices; folders alone
        are no class list, because some may be missing. "imagenet" takes those of ILSVRC2012. None
        numbers the folders of the training split by name
    size : number of images of the evaluation split; None takes any number
    resized : the evaluation images have the size that the centre crop is taken from, so they are
        not resized again
    skip_corrupt : leave out images that cannot be read, instead of stopping

    Raises
    ------
    SqError : a folder is missing, empty or has another layout, a class that is not in the list, or
        another number of images than `size`
    """
    folder = find(root, "dataset.root")
    train = list_classes(folder, splits[0], SUFFIXES)
    test = list_classes(folder, splits[1], SUFFIXES)
    names = list(train) if classes is None else _class_list(folder, classes)
    labels = {_composed(name): label for label, name in enumerate(names)}
    source = "the training split" if classes is None else classes
    _check_classes(folder / splits[0], train, labels, source)
    _check_classes(folder / splits[1], test, labels, source)
    count = sum(map(len, test.values()))
    if size is not None and count != size:
        raise SqError(
            f"{folder / splits[1]} holds {count:,} images, {name} is evaluated on {size:,}: copy "
            "it again, or, for figures of another image set, choose it (dataset=imagenet_sample, "
            "dataset=image_folder)"
        )
    return Dataset(
        _images(folder, splits[0], train, labels, False, skip_corrupt),
        _images(folder, splits[1], test, labels, resized, skip_corrupt),
        len(names),
        name,
        tuple(names),
    )


def _check_classes(
    folder: Path, classes: dict[str, list[Path]], labels: dict[str, int], source: str
) -> None:
    """Raise an `SqError` if a class folder has no label; `source` is where the labels are from."""
    unknown = [name for name in classes if _composed(name) not in labels]
    if unknown:
        raise SqError(
            f"{folder}: {len(unknown)} of {len(classes)} folders are no class of {source} "
            f"({', '.join(unknown[:3])}): correct dataset.classes, or remove them"
        )


def _images(
    folder: Path,
    split: str,
    classes: dict[str, list[Path]],
    labels: dict[str, int],
    resized: bool,
    skip_corrupt: bool,
) -> Images:
    """Return the images of a split, class by class."""
    paths: list[Path] = []
    y: list[int] = []
    for name, files in classes.items():
        paths += files
        y += [labels[_composed(name)]] * len(files)
    # Ids contain no folder of this machine, so that calibration draws are the same on all machines.
    ids = [f"{split}/{path.relative_to(folder / split).as_posix()}" for path in paths]
    reader = ColourReader(Files(paths))
    return Images(ids, torch.tensor(y), reader, resized, skip_corrupt, workers=None)


@dataclass(frozen=True)
class ColourReader:
    """Reads files as RGB, as in the training of the networks."""

    files: Files

    def __call__(self, index: int) -> Image.Image:
        """Return image `index`; raise an `ImageError` if it is unreadable or not 8-bit."""
        return colour(self.files(index))


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
            f"{file} names {len(names)} classes, {len({*names})} different ones: one class a line, "
            "each once"
        )
    return names


def _composed(name: str) -> str:
    """Return `name` with accents as one character each: macOS stores them as two."""
    return unicodedata.normalize("NFC", name)
