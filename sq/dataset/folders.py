"""Images in class folders, shared by `cifar10` and `image_folder`."""

import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from sq.core.progress import say
from sq.core.wording import quantity
from sq.dataset.image_file import read_image
from sq.errors import SqError

NAMED = 5  # names in a message
# Folders that archives and file servers leave behind.
NO_CLASSES = ("__MACOSX", "@eaDir", "$RECYCLE.BIN")


def list_classes(root: Path, split: str, suffixes: tuple[str, ...]) -> dict[str, list[Path]]:
    """Return the images of each class in root/split, classes sorted by name.

    The images of a class are those in its folder, at any depth, in the order of torchvision's
    `ImageFolder`. Hidden files and folders are left out. The number of other files, whose suffix is
    not of an image, is logged.

    Raises
    ------
    SqError : the folder is missing or has another layout, or a class has no images
    """
    folder = root / split
    layout = f"expected {split}/CLASS/*{suffixes[0]} in dataset.root"
    if not folder.is_dir():
        raise SqError(f"no folder {folder}; {root} holds {_content(root)}; {layout}")
    classes = sorted(path for path in folder.iterdir() if path.is_dir() and not _hidden(path.name))
    if not classes:
        raise SqError(f"{folder} holds no class folders but {_content(folder)}; {layout}")
    images: dict[str, list[Path]] = {}
    others: Counter[str] = Counter()  # by suffix
    for class_folder in classes:
        images[class_folder.name] = []
        for file in _files(class_folder):
            if file.suffix.lower() in suffixes:
                images[class_folder.name].append(file)
            else:
                others[file.suffix or file.name] += 1
    empty = [name for name, files in images.items() if not files]
    if empty:
        raise SqError(
            f"{folder}: no images ({', '.join(suffixes)}) in {len(empty)} of {len(images)} classes "
            f"({_shortened(empty)}): copy them again, or remove these folders"
        )
    if others:
        names = [name for name, _ in others.most_common()]
        say(
            f"{folder}: {quantity(others.total(), 'file')} left out, no images by their names "
            f"({_shortened(names)})"
        )
    return images


def _hidden(name: str) -> bool:
    return name.startswith(".") or name in NO_CLASSES


def _files(folder: Path) -> list[Path]:
    """Return the files in `folder` at any depth, links followed: by folder, then by name."""
    files: list[Path] = []
    visited: set[str] = set()  # a link to a folder above would lead round for ever
    for path, folders, names in os.walk(folder, followlinks=True):
        real_path = os.path.realpath(path)
        if real_path in visited:
            folders.clear()
            continue
        visited.add(real_path)
        # os.walk goes on in this order.
        folders[:] = sorted(name for name in folders if not _hidden(name))
        files += [Path(path, name) for name in sorted(names) if not _hidden(name)]
    return files


def _content(folder: Path) -> str:
    """Return the first names in `folder`, for a message."""
    if not folder.is_dir():
        return "nothing"
    return _shortened(sorted(path.name for path in folder.iterdir())) or "nothing"


def _shortened(names: list[str]) -> str:
    """Return the first of `names`, for a message."""
    return ", ".join(names[:NAMED]) + (", ..." if len(names) > NAMED else "")


@dataclass(frozen=True)
class Files:
    """Reads image files as they are."""

    files: list[Path]

    def __call__(self, index: int) -> Image.Image:
        """Return image `index`; raise an `ImageError` if it cannot be read."""
        return read_image(self.files[index])
