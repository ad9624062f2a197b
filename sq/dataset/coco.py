"""COCO, or any images laid out as COCO is: with its JSON annotations, or with a data YAML and a text file an image."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

import torch
import yaml
from PIL import Image

from sq.data import find
from sq.errors import SqError
from sq.samples import Dataset, Images, Objects

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
SLACK = 1e-5  # by which rounding may push a share beyond 1
Row = tuple[int, float, float, float, float, bool]  # class, left, top, width, height in pixels, crowd


@dataclass(frozen=True)
class Reader:
    """Reads an image by its place. EXIF orientation is ignored, as COCO's tools do."""

    paths: tuple[str, ...]

    def __call__(self, i: int) -> Image.Image:
        """Return image `i` in RGB."""
        with Image.open(self.paths[i]) as image:
            return image.convert("RGB")


def load(*, name: str, root: str, train: str, test: str, annotations: str, skip_corrupt: bool) -> Dataset:
    """Load two disjoint splits in one of two layouts; which one, `annotations` says.

    A data YAML (.yaml, .yml) has the keys `train`, `val` ... (image folders, or .txt lists of images; relative to
    its key `path`, and that to the YAML's folder) and `names` (a list, or a mapping from 0 on). The objects of
    ``images/x/1.jpg`` stand in ``labels/x/1.txt``, a line each: class and box (centre x, centre y, width, height) or
    outline (x, y, x, y, ...), as shares of the image's sides; without that file there are none. COCO JSON: classes
    are the sorted category ids, counted from 0, and only images that the JSON names are taken.

    A box without width or height is kept, as COCO's tools keep it: an object that no detection can match.

    Parameters
    ----------
    name : of the image set
    root : the folder; a relative path is looked for here, then in $SQ_DATA
    train, test : keys of the data YAML; or image folders in `root`, with COCO JSON
    annotations : file in `root`: a data YAML; or COCO JSON, where * stands for the last part of `train` and `test`
    skip_corrupt : leave out images that cannot be read, where that is an error otherwise

    Raises
    ------
    SqError : a file, folder or image is missing; labels, YAML or JSON are malformed; a class is unknown; the splits
        share images

    Source
    ------
    Lin et al. 2014, Microsoft COCO: Common Objects in Context; https://cocodataset.org/#format-data.
    """
    folder = find(root, "dataset.root")
    (first, known), (second, classes) = (_split(folder, annotations, split, skip_corrupt) for split in (train, test))
    if known != classes:
        raise SqError(f"{folder}: {train} has {known} categories, {test} {classes}: use annotations of one data set")
    if both := sorted({*first.ids} & {*second.ids}):
        raise SqError(
            f"dataset.train={train} and dataset.test={test} share {len(both)} images ({both[0]} ...): figures on "
            "images that calibration has seen would flatter; give two disjoint splits"
        )
    return Dataset(first, second, classes, name)


def _split(folder: Path, annotations: str, split: str, skip_corrupt: bool) -> tuple[Images, int]:
    """Return one split and the number of classes."""
    by_yaml = annotations.endswith((".yaml", ".yml"))
    file = folder / (annotations if by_yaml else annotations.replace("*", PurePath(split).name))
    if not file.is_file():
        names = sorted(own.name for own in folder.glob("*"))
        raise SqError(
            f"{folder} has no {file.relative_to(folder)} but {', '.join(names[:5]) or 'nothing'}"
            f"{' ...' if names[5:] else ''}: dataset.root must hold a data YAML with images/SPLIT and labels/SPLIT "
            "(dataset=coco_sample), or images/SPLIT and annotations/instances_SPLIT.json (dataset=coco)"
        )
    paths, objects, classes = (_from_yaml if by_yaml else _from_json)(file, folder, split)
    if gone := [str(path) for path in paths if not path.is_file()]:
        raise SqError(
            f"{len(gone)} of {len(paths)} images that {file} names are missing ({', '.join(gone[:3])}"
            f"{' ...' if gone[3:] else ''}): copy them there"
        )
    ids, reader = _ids(paths, file, folder), Reader(tuple(map(str, paths)))
    return Images(ids, objects, reader, skip_corrupt=skip_corrupt, workers=None), classes


def _from_yaml(file: Path, folder: Path, split: str) -> tuple[list[Path], list[Objects], int]:
    """Return the images of `split`, their objects and the number of classes, by the data YAML `file`."""
    try:
        spec = yaml.safe_load(file.read_text())
        base, names, places = file.parent / str(spec.get("path") or "."), spec["names"], spec[split]
        folders = [base / place for place in ([places] if isinstance(places, str) else places)]
        classes = [*names] if isinstance(names, dict) else [*range(len(names))]
    except (yaml.YAMLError, AttributeError, KeyError, TypeError, UnicodeDecodeError) as error:
        raise SqError(
            f"{file} has no {split} or names ({' '.join(str(error).split())}): it must be a data YAML with the keys "
            "path, train, val and names; dataset.train and dataset.test name its keys"
        ) from error
    if classes != [*range(len(classes))]:
        raise SqError(f"{file}: names has the keys {classes[:5]} ...: number the classes from 0 on")
    if not base.is_dir():
        raise SqError(f"{file}: there is no folder path={spec.get('path')}: it is relative to the YAML, write path: .")
    paths = [path for place in folders for path in _images(place)]
    labels = [_label(path) for path in paths]
    if not any(label.is_file() for label in labels):
        raise SqError(f"{file}: no image of {split} has a label file such as {labels[0]}: copy the labels there")
    return paths, [_labelled(*pair, len(classes)) for pair in zip(paths, labels, strict=True)], len(classes)


def _images(place: Path) -> list[Path]:
    """Return the images in the folder or .txt list `place`, sorted."""
    if place.is_file() and place.suffix == ".txt":
        lines = place.read_text().splitlines()
        found = sorted(place.parent / line.strip() for line in lines if line.strip())
    elif place.is_dir():
        found = sorted(own for own in place.rglob("*") if own.suffix.lower() in SUFFIXES)
    else:
        raise SqError(f"no image folder or .txt list {place}: correct the path, or copy the images there")
    if not found:
        raise SqError(f"{place} holds no images ({', '.join(SUFFIXES)}): copy them there")
    return found


def _label(path: Path) -> Path:
    """Return the label file of the image at `path`: in labels/ for the last images/ of its path, else beside it."""
    before, images, after = str(path).rpartition("/images/")
    return Path(f"{before}/labels/{after}" if images else path).with_suffix(".txt")


def _labelled(path: Path, label: Path, classes: int) -> Objects:
    """Return the objects that the text file `label` names in the image at `path`."""
    try:
        with Image.open(path) as image:  # reads the header only
            width, height = image.size
    except OSError:  # whoever reads the image finds that out as well, and knows whether it may be skipped
        return _objects([], (0, 0))
    rows: list[Row] = []
    for number, line in enumerate(label.read_text().splitlines() if label.is_file() else (), 1):
        if not line.strip():
            continue
        k, x, y, w, h = _numbers(line, f"{label}:{number}")
        if k >= classes:
            raise SqError(f"{label}:{number}: class {k}, but names has {classes} classes: correct the line or names")
        rows.append((k, x * width, y * height, w * width, h * height, False))
    return _objects(rows, (height, width))


def _numbers(line: str, where: str) -> tuple[int, float, float, float, float]:
    """Return class, left, top, width and height (shares of the image's sides) in a `line` of a label file."""
    try:
        first, *shares = map(float, line.split())
        fits = len(shares) == 4 or (len(shares) > 4 and len(shares) % 2 == 0)
        if not (fits and first >= 0 and first.is_integer() and all(0 <= s <= 1 + SLACK for s in shares)):
            raise ValueError
    except ValueError:
        raise SqError(
            f"{where}: got {line.strip()[:60]!r}, expected 'class x y width height' or 'class x y x y x y ...' with a "
            "whole class and shares from 0 to 1: correct or remove the line"
        ) from None
    if len(shares) == 4:
        x, y, w, h = shares
        return int(first), x - w / 2, y - h / 2, w, h
    x, y = min(shares[::2]), min(shares[1::2])
    return int(first), x, y, max(shares[::2]) - x, max(shares[1::2]) - y


def _from_json(file: Path, folder: Path, split: str) -> tuple[list[Path], list[Objects], int]:
    """Return the images that COCO's JSON `file` names, their objects and the number of classes."""
    if not (folder / split).is_dir():
        raise SqError(f"no image folder {folder / split}: correct dataset.train and dataset.test, or copy it there")
    try:
        spec = json.loads(file.read_bytes())
        classes = {key: k for k, key in enumerate(sorted(own["id"] for own in spec["categories"]))}
        images = sorted(spec["images"], key=lambda own: own["file_name"])
        rows: dict[Any, list[Row]] = {own["id"]: [] for own in images}
        for own in spec["annotations"]:
            x, y, w, h = map(float, own["bbox"])
            rows[own["image_id"]].append((classes[own["category_id"]], x, y, w, h, bool(own.get("iscrowd", 0))))
        objects = [_objects(rows[own["id"]], (int(own["height"]), int(own["width"]))) for own in images]
    except (ValueError, KeyError, TypeError) as error:
        raise SqError(
            f"{file} is not COCO instances JSON ({type(error).__name__}: {' '.join(str(error).split())}): it must have "
            "images, annotations (image_id, category_id, bbox) of these images, and categories"
        ) from error
    if not images:
        raise SqError(f"{file} names no images: use COCO's instances_*.json")
    return [folder / split / own["file_name"] for own in images], objects, len(classes)


def _objects(rows: list[Row], size: tuple[int, int]) -> Objects:
    """Return objects for `rows` in an image of `size` (height, width)."""
    boxes = torch.tensor([(x, y, x + w, y + h) for _, x, y, w, h, _ in rows], dtype=torch.float32).reshape(-1, 4)
    classes = torch.tensor([row[0] for row in rows], dtype=torch.int64)
    return Objects(boxes, classes, torch.tensor([row[5] for row in rows], dtype=torch.bool), size)


def _ids(paths: Iterable[Path], file: Path, folder: Path) -> list[str]:
    """Return ids that name no folder of this machine: the path in `folder`, after the last images/ if there is one."""
    ids = []
    for path in paths:
        parts = path.relative_to(folder).parts if path.is_relative_to(folder) else path.parts[-2:]
        last = max((i for i, part in enumerate(parts[:-1], 1) if part == "images"), default=0)
        ids.append("/".join(("coco", *parts[last:])))
    if twice := [own for own, count in Counter(ids).items() if count > 1]:
        raise SqError(f"{file} names {len(twice)} images more than once ({', '.join(twice[:3])}): name each once")
    return ids
