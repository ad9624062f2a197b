"""Images in class folders: what `cifar10` and `image_folder` share."""

from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from sq.errors import SqError

SHOWN = 5  # names in a message


def list_classes(root: Path, use: str, suffixes: tuple[str, ...]) -> dict[str, list[Path]]:
    """Return the images of each class in root/use, classes and images sorted by name.

    Raises
    ------
    SqError : the folder is missing or laid out otherwise, or a class has no images
    """
    folder = root / use
    wanted = f"expected {use}/CLASS/*{suffixes[0]} in dataset.root"
    if not folder.is_dir():
        raise SqError(f"no folder {folder}; {root} holds {_names(root)}; {wanted}")
    classes = sorted(own for own in folder.iterdir() if own.is_dir() and not own.name.startswith("."))
    if not classes:
        raise SqError(f"{folder} holds no class folders but {_names(folder)}; {wanted}")
    found = {own.name: sorted(f for f in own.iterdir() if f.suffix.lower() in suffixes) for own in classes}
    if empty := [name for name, files in found.items() if not files]:
        more = ", ..." if len(empty) > SHOWN else ""
        raise SqError(
            f"{folder}: no images ({', '.join(suffixes)}) in {len(empty)} of {len(found)} classes "
            f"({', '.join(empty[:SHOWN])}{more}): copy them again, or remove these folders"
        )
    return found


def _names(folder: Path) -> str:
    names = sorted(own.name for own in folder.iterdir()) if folder.is_dir() else []
    return ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "") or "nothing"


@dataclass(frozen=True)
class Files:
    """Reads image files as they are."""

    files: list[Path]

    def __call__(self, place: int) -> Image.Image:
        """Return the image at `place`."""
        with Image.open(self.files[place]) as image:
            image.load()  # now, so that a damaged file is found here; what is loaded outlives the handle
            return image
