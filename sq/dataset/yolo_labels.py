"""The layout of ultralytics: a data YAML with folders and classes, and a label file per image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from sq.core.file_content import read_text
from sq.core.progress import say
from sq.dataset.image_file import AS_STORED, Header, read_header
from sq.dataset.objects import Annotated, Row, to_objects
from sq.errors import ImageError, SqError
from sq.types.images import Objects

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
TOLERANCE = 0.01  # of shares below 0 or above 1, as in ultralytics


def read(file: Path, folder: Path, split: str) -> Annotated:
    """Return the images of `split` and their objects, by the data YAML `file`.

    As in ultralytics, images are turned by their EXIF orientation, and a repeated label line counts
    once.

    Raises
    ------
    SqError : a file or folder is missing; YAML or labels are malformed; a class is unknown
    """
    folders, names = _spec(file, split)
    paths: list[Path] = []
    for folder_or_list in folders:
        paths += list_images(folder_or_list)
    label_files = [label_file(path) for path in paths]
    without_labels = sum(not label.is_file() for label in label_files)
    if without_labels == len(paths):
        raise SqError(
            f"{file}: no image of {split} has a label file such as {label_files[0]}: copy the "
            "labels there"
        )
    objects: list[Objects] = []
    sizes: list[tuple[int, int] | None] = []
    lines, repeated, turned = 0, 0, 0
    for path, label in zip(paths, label_files, strict=True):
        header = _header(path)
        labels = _read_labels(label, header, len(names))
        objects.append(labels.objects)
        sizes.append(header.upright if header else None)
        lines += labels.lines
        repeated += labels.repeated
        if header and header.orientation != AS_STORED:
            turned += 1
    if without_labels > len(paths) / 2:
        say(
            f"{file}: {without_labels} of {len(paths)} images of {split} have no label file: taken "
            "for images without objects"
        )
    if repeated:
        say(
            f"{file}: {repeated} of {lines} label lines of {split} are there twice: each counts "
            "once"
        )
    if turned:
        say(
            f"{file}: {turned} of {len(paths)} images of {split} are turned as their EXIF "
            "orientation says"
        )
    return Annotated(paths, objects, names, sizes, turned=True)


def _spec(file: Path, split: str) -> tuple[list[Path], list[str]]:
    """Return the image folders, or lists, of `split` and the names of the classes."""
    text = read_text(file)
    try:
        spec = yaml.safe_load(text)
        base = file.parent / str(spec.get("path") or ".")
        numbers, names = _numbered_names(spec["names"])
        folders = spec[split]
        if isinstance(folders, str):
            folders = [folders]
        folders = [_existing(base, str(folder)) for folder in folders]
    except (yaml.YAMLError, AttributeError, KeyError, TypeError) as error:
        raise SqError(
            f"{file} has no {split} or names ({' '.join(str(error).split())}): it must be a data "
            "YAML with the keys path, train, val and names; dataset.train and dataset.test name "
            "its keys"
        ) from error
    if numbers != list(range(len(numbers))):
        raise SqError(f"{file}: names has the keys {numbers[:5]} ...: number the classes from 0 on")
    if spec.get("nc", len(names)) != len(names):
        raise SqError(
            f"{file}: nc={spec['nc']}, but names has {len(names)} classes: correct one of them"
        )
    if not base.is_dir():
        raise SqError(
            f"{file}: there is no folder path={spec.get('path')}: it is relative to the YAML, "
            "write path: ."
        )
    return folders, names


def _numbered_names(names: Any) -> tuple[list[Any], list[str]]:
    """Return the numbers and the names of the classes, from a list or a mapping."""
    if isinstance(names, dict):
        return list(names), list(map(str, names.values()))
    return list(range(len(names))), list(map(str, names))


def _existing(base: Path, folder: str) -> Path:
    """Return the path of `folder`; Roboflow writes ../ before folders next to the YAML."""
    without_parent = base / folder.removeprefix("../")
    if not (base / folder).exists() and without_parent.exists():
        return without_parent
    return base / folder


def list_images(source: Path) -> list[Path]:
    """Return the images in the folder or .txt list `source`, sorted, without hidden files."""
    if source.is_file() and source.suffix == ".txt":
        lines = read_text(source).splitlines()
        images = sorted(source.parent / line.strip() for line in lines if line.strip())
    elif source.is_dir():
        images = sorted(path for path in source.rglob("*") if _is_image(path))
    else:
        raise SqError(
            f"no image folder or .txt list {source}: correct the path, or copy the images there"
        )
    if not images:
        raise SqError(f"{source} holds no images ({', '.join(SUFFIXES)}): copy them there")
    return images


def label_file(path: Path) -> Path:
    """Return the label file of an image: in labels/ for the last images/, else next to it."""
    before, images, after = str(path).rpartition("/images/")
    return Path(f"{before}/labels/{after}" if images else path).with_suffix(".txt")


def _is_image(path: Path) -> bool:
    """Tell whether `path` is an image file by its name, and not hidden."""
    if path.suffix.lower() not in SUFFIXES or path.name.startswith("."):
        return False
    return not path.is_dir()


def _header(path: Path) -> Header | None:
    try:
        return read_header(path)
    except ImageError:
        # Reported when the image is read: it may be skipped there.
        return None


@dataclass(frozen=True)
class _Labels:
    """The objects of one image, and the numbers of lines and repeated lines of its label file."""

    objects: Objects
    lines: int
    repeated: int


def _read_labels(file: Path, header: Header | None, classes: int) -> _Labels:
    """Return the objects in the label file of an image; none if the image cannot be read."""
    if header is None:
        return _Labels(to_objects([], (0, 0)), 0, 0)
    height, width = header.upright
    text = read_text(file).splitlines() if file.is_file() else []
    lines = 0
    # By the whole line, because different outlines can have the same box.
    rows: dict[tuple[float, ...], Row] = {}
    for number, line in enumerate(text, 1):
        if not line.strip():
            continue
        lines += 1
        where = f"{file}:{number}"
        k, *shares = _numbers(line, where)
        if k >= classes:
            raise SqError(
                f"{where}: class {k:.0f}, but names has {classes} classes, counted from 0: correct "
                "the line or names"
            )
        x, y, w, h = _box(shares)
        rows[(k, *shares)] = (int(k), x * width, y * height, w * width, h * height, False)
    objects = to_objects([*rows.values()], (height, width))
    return _Labels(objects, lines, lines - len(rows))


def _numbers(line: str, where: str) -> list[float]:
    """Return the class and the shares of the image's sides in a `line` of a label file."""
    try:
        first, *shares = map(float, line.split())
        is_box = len(shares) == 4 and min(shares[2:]) >= 0
        is_outline = len(shares) > 4 and len(shares) % 2 == 0
        are_shares = all(-TOLERANCE <= share <= 1 + TOLERANCE for share in shares)
        is_class = first >= 0 and first.is_integer()
        if not ((is_box or is_outline) and are_shares and is_class):
            raise ValueError
    except ValueError:
        raise SqError(
            f"{where}: got {line.strip()[:60]!r}, expected 'class x y width height' or 'class x y "
            "x y x y ...' with a whole class and shares of the image's sides from 0 to 1 (not "
            "pixels): correct or remove the line"
        ) from None
    return [first, *shares]


def _box(shares: Sequence[float]) -> tuple[float, float, float, float]:
    """Return left, top, width and height of a box or an outline, as shares of the image's sides."""
    if len(shares) == 4:
        x, y, w, h = shares
        return x - w / 2, y - h / 2, w, h
    left, top = min(shares[::2]), min(shares[1::2])
    return left, top, max(shares[::2]) - left, max(shares[1::2]) - top
