"""Images in class folders: what `cifar10` and `image_folder` share."""

import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from sq.core.progress import say
from sq.core.wording import quantity
from sq.dataset.image_file import read_image
from sq.errors import SqError

SHOWN = 5  # names in a message
NO_CLASSES = ("__MACOSX", "@eaDir", "$RECYCLE.BIN")  # folders that archives and file servers leave


def list_classes(root: Path, use: str, suffixes: tuple[str, ...]) -> dict[str, list[Path]]:
    """Return the images of each class in root/use, classes sorted by name.

    A class's images are those in its folder and, at any depth, in the folders in it, in the order
    in which torchvision's `ImageFolder` has them. Hidden files and folders are left out; how many
    other files are no images by their suffix is said.

    Raises
    ------
    SqError : the folder is missing or laid out otherwise, or a class has no images
    """
    folder = root / use
    wanted = f"expected {use}/CLASS/*{suffixes[0]} in dataset.root"
    if not folder.is_dir():
        raise SqError(f"no folder {folder}; {root} holds {_names(root)}; {wanted}")
    classes = sorted(own for own in folder.iterdir() if own.is_dir() and not _hidden(own.name))
    if not classes:
        raise SqError(f"{folder} holds no class folders but {_names(folder)}; {wanted}")
    every = {own.name: _files(own) for own in classes}
    found = {
        name: [f for f in files if f.suffix.lower() in suffixes] for name, files in every.items()
    }
    if empty := [name for name, files in found.items() if not files]:
        more = ", ..." if len(empty) > SHOWN else ""
        raise SqError(
            f"{folder}: no images ({', '.join(suffixes)}) in {len(empty)} of {len(found)} classes "
            f"({', '.join(empty[:SHOWN])}{more}): copy them again, or remove these folders"
        )
    others = Counter(
        f.suffix or f.name
        for name in every
        for f in every[name]
        if f.suffix.lower() not in suffixes
    )
    if others:
        kinds = ", ".join(name for name, _ in others.most_common(SHOWN))
        more = ", ..." if len(others) > SHOWN else ""
        say(
            f"{folder}: {quantity(others.total(), 'file')} left out, no images by their names ({kinds}{more})"
        )
    return found


def _hidden(name: str) -> bool:
    return name.startswith(".") or name in NO_CLASSES


def _files(folder: Path) -> list[Path]:
    """Return the files in `folder` and in the folders in it: by folder, then by name, links followed."""
    found: list[Path] = []
    seen: set[str] = set()  # a link to a folder above would lead round for ever
    for place, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(place)
        folders[:] = [] if real in seen else sorted(name for name in folders if not _hidden(name))
        if real not in seen:
            found += [Path(place, name) for name in sorted(names) if not _hidden(name)]
        seen.add(real)
    return found


def _names(folder: Path) -> str:
    names = sorted(own.name for own in folder.iterdir()) if folder.is_dir() else []
    return ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "") or "nothing"


@dataclass(frozen=True)
class Files:
    """Reads image files as they are."""

    files: list[Path]

    def __call__(self, place: int) -> Image.Image:
        """Return the image at `place`; raise an `ImageError` if it cannot be read."""
        return read_image(self.files[place])
