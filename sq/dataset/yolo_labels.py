"""The layout of ultralytics: a data YAML that names image folders and classes, and a text file of boxes an image."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import yaml

from sq.core.file_content import read_text
from sq.core.progress import say
from sq.dataset.image_file import AS_STORED, Header, read_header
from sq.dataset.objects import Annotated, Row, to_objects
from sq.errors import ImageError, SqError
from sq.types.images import Objects

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
SLACK = 0.01  # by which a share may be below 0 or above 1: what ultralytics tolerates


def read(file: Path, folder: Path, split: str) -> Annotated:
    """Return the images of `split` and their objects, by the data YAML `file`.

    Images are turned as their EXIF orientation says, and a label line that is there twice counts
    once, both as ultralytics has it.

    Raises
    ------
    SqError : a file or folder is missing; YAML or labels are malformed; a class is unknown
    """
    folders, names = _spec(file, split)
    paths = [path for place in folders for path in list_images(place)]
    labels = [label_file(path) for path in paths]
    headers = [_header(path) for path in paths]
    if not any(label.is_file() for label in labels):
        raise SqError(
            f"{file}: no image of {split} has a label file such as {labels[0]}: copy the labels there"
        )
    objects, lines, bare, twice = [], 0, 0, 0
    for label, header in zip(labels, headers, strict=True):
        bare += not label.is_file()
        found, read_lines, dropped = _labelled(label, header, len(names))
        objects.append(found)
        lines, twice = lines + read_lines, twice + dropped
    if bare > len(paths) / 2:
        say(
            f"{file}: {bare} of {len(paths)} images of {split} have no label file: taken for images without objects"
        )
    if twice:
        say(f"{file}: {twice} of {lines} label lines of {split} are there twice: each counts once")
    if turned := sum(header is not None and header.orientation != AS_STORED for header in headers):
        say(
            f"{file}: {turned} of {len(paths)} images of {split} are turned as their EXIF orientation says"
        )
    return Annotated(
        paths,
        objects,
        names,
        [header.upright if header else None for header in headers],
        turned=True,
    )


def _spec(file: Path, split: str) -> tuple[list[Path], list[str]]:
    """Return the image folders, or lists, of `split` and the names of the classes."""
    text = read_text(file)
    try:
        spec = yaml.safe_load(text)
        base, names, places = file.parent / str(spec.get("path") or "."), spec["names"], spec[split]
        folders = [
            _place(base, str(place)) for place in ([places] if isinstance(places, str) else places)
        ]
        classes = [*names] if isinstance(names, dict) else [*range(len(names))]
        names = [str(name) for name in (names.values() if isinstance(names, dict) else names)]
    except (yaml.YAMLError, AttributeError, KeyError, TypeError) as error:
        raise SqError(
            f"{file} has no {split} or names ({' '.join(str(error).split())}): it must be a data YAML with the keys "
            "path, train, val and names; dataset.train and dataset.test name its keys"
        ) from error
    if classes != [*range(len(classes))]:
        raise SqError(f"{file}: names has the keys {classes[:5]} ...: number the classes from 0 on")
    if spec.get("nc", len(names)) != len(names):
        raise SqError(
            f"{file}: nc={spec['nc']}, but names has {len(names)} classes: correct one of them"
        )
    if not base.is_dir():
        raise SqError(
            f"{file}: there is no folder path={spec.get('path')}: it is relative to the YAML, write path: ."
        )
    return folders, names


def _place(base: Path, place: str) -> Path:
    """Return where `place` lies: exports of Roboflow write ../ before folders that lie beside the YAML."""
    if not (base / place).exists() and (base / place.removeprefix("../")).exists():
        return base / place.removeprefix("../")
    return base / place


def list_images(place: Path) -> list[Path]:
    """Return the images in the folder or .txt list `place`, sorted; hidden files are none."""
    if place.is_file() and place.suffix == ".txt":
        lines = read_text(place).splitlines()
        found = sorted(place.parent / line.strip() for line in lines if line.strip())
    elif place.is_dir():
        every = (own for own in place.rglob("*") if own.suffix.lower() in SUFFIXES)
        found = sorted(own for own in every if not own.name.startswith(".") and not own.is_dir())
    else:
        raise SqError(
            f"no image folder or .txt list {place}: correct the path, or copy the images there"
        )
    if not found:
        raise SqError(f"{place} holds no images ({', '.join(SUFFIXES)}): copy them there")
    return found


def label_file(path: Path) -> Path:
    """Return the label file of the image at `path`: in labels/ for the last images/ of its path, else beside it."""
    before, images, after = str(path).rpartition("/images/")
    return Path(f"{before}/labels/{after}" if images else path).with_suffix(".txt")


def _header(path: Path) -> Header | None:
    try:
        return read_header(path)
    except ImageError:
        # whoever reads the image finds that out as well, and knows whether it may be skipped
        return None


def _labelled(label: Path, header: Header | None, classes: int) -> tuple[Objects, int, int]:
    """Return the objects that the text file `label` names, how many lines it has, and how many of them again."""
    if header is None:
        return to_objects([], (0, 0)), 0, 0
    height, width = header.upright
    rows: dict[tuple[float, ...], Row] = {}
    lines = [(n, line) for n, line in enumerate(_lines(label), 1) if line.strip()]
    for number, line in lines:
        where = f"{label}:{number}"
        k, *shares = _numbers(line, where)
        if k >= classes:
            raise SqError(
                f"{where}: class {k:.0f}, but names has {classes} classes, counted from 0: correct the line or names"
            )
        # By the whole line: outlines that differ can have one box.
        x, y, w, h = _box(shares)
        rows[(k, *shares)] = (int(k), x * width, y * height, w * width, h * height, False)
    return to_objects([*rows.values()], (height, width)), len(lines), len(lines) - len(rows)


def _lines(label: Path) -> list[str]:
    return read_text(label).splitlines() if label.is_file() else []


def _numbers(line: str, where: str) -> list[float]:
    """Return the class and the shares of the image's sides in a `line` of a label file."""
    try:
        first, *shares = map(float, line.split())
        fits = len(shares) == 4 or (len(shares) > 4 and len(shares) % 2 == 0)
        within = all(-SLACK <= share <= 1 + SLACK for share in shares)
        sides = len(shares) > 4 or all(share >= 0 for share in shares[2:])
        if not (fits and within and sides and first >= 0 and first.is_integer()):
            raise ValueError
    except ValueError:
        raise SqError(
            f"{where}: got {line.strip()[:60]!r}, expected 'class x y width height' or 'class x y x y x y ...' with a "
            "whole class and shares of the image's sides from 0 to 1 (not pixels): correct or remove the line"
        ) from None
    return [first, *shares]


def _box(shares: Sequence[float]) -> tuple[float, float, float, float]:
    """Return left, top, width and height of a box or an outline, as shares of the image's sides."""
    if len(shares) == 4:
        x, y, w, h = shares
        return x - w / 2, y - h / 2, w, h
    left, top = min(shares[::2]), min(shares[1::2])
    return left, top, max(shares[::2]) - left, max(shares[1::2]) - top
