"""COCO's JSON annotations: images, categories and boxes in one file a split."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sq.core.progress import say
from sq.dataset.image_file import Header, read_header
from sq.dataset.objects import Annotated, Row, to_objects, turns, unique
from sq.errors import ImageError, SqError

SHOWN = 3  # names in a message
BEYOND = 1.0  # pixels that a box may reach beyond its image before that is said
LISTS = ("images", "annotations", "categories")


def read(file: Path, folder: Path, split: str, *, evaluated: bool) -> Annotated:
    """Return the images that `file` names in folder/split, with their objects.

    Sizes in the JSON are compared with those of the files: here for a split that is `evaluated`,
    otherwise when an image is read. A file whose EXIF orientation turns it by 90 degrees is read in
    the orientation that has the JSON's size; where that does not tell, as the others of its split
    are; as stored, as COCO's tools do, where no other tells either.

    Raises
    ------
    SqError : the file or the folder is missing; the JSON is malformed, contradicts itself or the
    images' sizes
    """
    if not (folder / split).is_dir():
        raise SqError(
            f"no image folder {folder / split}: correct dataset.train and dataset.test, or copy it there"
        )
    spec = _lists(file)
    index, names = _categories(spec["categories"], file)
    images = _images(spec["images"], file)
    paths = [folder / split / str(image["file_name"]).replace("\\", "/") for image in images]
    headers = _headers(paths, images, evaluated)
    turned = _convention(images, headers)
    sizes = [_size(image, header, file) for image, header in zip(images, headers, strict=True)]
    _check_sizes(file, images, headers, sizes)
    rows = _rows(spec["annotations"], index, images, file)
    _check_boxes(file, rows, sizes)
    objects = [to_objects(own, size or (0, 0)) for own, size in zip(rows, sizes, strict=True)]
    return Annotated(paths, objects, names, sizes, turned)


def _lists(file: Path) -> dict[str, list[dict[str, Any]]]:
    """Return the three lists of objects in `file`."""
    try:
        spec = json.loads(file.read_bytes())
    except OSError as error:
        raise SqError(f"{file} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise _refusal(file, f"it cannot be parsed ({reason})") from error
    if not isinstance(spec, dict):
        raise _refusal(file, "it holds no mapping")
    for name in LISTS:
        own = spec.get(name)
        if not isinstance(own, list) or not all(isinstance(entry, dict) for entry in own):
            raise _refusal(file, f"it has no list of objects `{name}`")
    return spec


def _refusal(file: Path, what: str) -> SqError:
    return SqError(
        f"{file} is not COCO instances JSON: {what}: it must have images (id, file_name), annotations (image_id, "
        "category_id, bbox) of these images, and categories (id, name)"
    )


def _value(entry: Mapping[str, Any], name: str, what: str, file: Path) -> Any:
    if name not in entry:
        raise _refusal(file, f"{what} has no {name}")
    return entry[name]


@dataclass(frozen=True)
class _Kind:
    """Entries that have ids: what they are called, what their ids may be, and what they are named by."""

    singular: str
    plural: str
    types: tuple[type, ...]
    allowed: str
    label: str


CATEGORY = _Kind("category", "categories", (int,), "whole number", "name")
IMAGE = _Kind("image", "images", (int, str), "number or text", "file_name")


def _check_ids(entries: Sequence[Mapping[str, Any]], kind: _Kind, file: Path) -> None:
    """Raise an `SqError` if an entry has no id, one of a wrong type, or that of another entry."""
    ids = [_value(entry, "id", f"{kind.singular} {n}", file) for n, entry in enumerate(entries, 1)]
    if wrong := [key for key in ids if not isinstance(key, kind.types)]:
        raise _refusal(file, f"{wrong[0]!r} is no {kind.allowed}, as ids of {kind.plural} are")
    if twice := [key for key, count in Counter(ids).items() if count > 1]:
        own = [str(entry.get(kind.label)) for entry in entries if entry["id"] == twice[0]]
        raise SqError(
            f"{file}: the {kind.plural} {', '.join(own[:SHOWN])} have one id, {twice[0]}: their objects cannot be told "
            f"apart; give each {kind.singular} an id of its own"
        )


def _categories(
    entries: Sequence[Mapping[str, Any]], file: Path
) -> tuple[dict[Any, int], list[str]]:
    """Return the class of each category id, counted from 0 in the order of the ids, and the names of the classes."""
    _check_ids(entries, CATEGORY, file)
    ordered = sorted(entries, key=lambda entry: entry["id"])
    index = {entry["id"]: k for k, entry in enumerate(ordered)}
    return index, [str(entry.get("name", entry["id"])) for entry in ordered]


def _images(entries: Sequence[dict[str, Any]], file: Path) -> list[dict[str, Any]]:
    """Return the entries of images sorted by file name."""
    if not entries:
        raise SqError(f"{file} names no images: use COCO's instances_*.json")
    _check_ids(entries, IMAGE, file)
    return sorted(
        entries, key=lambda entry: str(_value(entry, "file_name", f"image {entry['id']}", file))
    )


def _headers(
    paths: Sequence[Path], images: Sequence[Mapping[str, Any]], evaluated: bool
) -> list[Header | None]:
    """Return headers of the images where they are needed; None where they are not, or cannot be read."""
    headers: list[Header | None] = []
    for path, image in zip(paths, images, strict=True):
        try:
            known = image.get("width") and image.get("height")
            headers.append(read_header(path) if evaluated or not known else None)
        except ImageError:
            # whoever reads the image finds that out as well, and knows whether it may be skipped
            headers.append(None)
    return headers


def _size(image: Mapping[str, Any], header: Header | None, file: Path) -> tuple[int, int] | None:
    """Return (height, width) that boxes of an image are pixels of: the JSON's, else the file's."""
    if not (image.get("width") and image.get("height")):
        return header.upright if header else None
    try:
        height, width = (float(image[side]) for side in ("height", "width"))
        whole = height.is_integer() and width.is_integer() and min(height, width) > 0
    except (TypeError, ValueError):
        whole = False
    if not whole:
        got = f"height {image['height']!r} and width {image['width']!r}"
        raise _refusal(file, f"image {image['file_name']} has {got}, not pixels")
    return int(height), int(width)


def _convention(images: Sequence[Mapping[str, Any]], headers: Sequence[Header | None]) -> bool:
    """Return whether boxes are of images turned as EXIF says, by those images whose size tells."""
    votes = set()
    for image, header in zip(images, headers, strict=True):
        if header and header.upright != header.size:
            size = (image.get("height"), image.get("width"))
            votes |= {size == header.upright} if size in (header.upright, header.size) else set()
    return votes == {True}


def _check_sizes(
    file: Path,
    images: Sequence[Mapping[str, Any]],
    headers: Sequence[Header | None],
    sizes: Sequence[tuple[int, int] | None],
) -> None:
    """Raise an `SqError` if images have another size than the JSON says; say how many are turned."""
    differing, turned = [], 0
    for image, header, size in zip(images, headers, sizes, strict=True):
        if header is None or size is None:
            continue
        if size not in (header.size, header.upright):
            differing.append(
                f"{image['file_name']}: {size[1]}x{size[0]} there, {header.size[1]}x{header.size[0]} in the file"
            )
        elif turns(header, size, turned=False):
            turned += 1
    if differing:
        raise SqError(
            f"{file}: {len(differing)} of {len(images)} images have another width and height than it says "
            f"({'; '.join(differing[:SHOWN])}{'; ...' if differing[SHOWN:] else ''}): their boxes would be elsewhere; "
            "correct the JSON, or copy the images it was made for"
        )
    if turned:
        say(
            f"{file}: {turned} of {len(images)} images are turned as their EXIF orientation says: its sizes are so"
        )


def _rows(
    annotations: Sequence[Mapping[str, Any]],
    index: Mapping[Any, int],
    images: Sequence[Mapping[str, Any]],
    file: Path,
) -> list[list[Row]]:
    """Return the rows of each image; a row that is there twice counts once."""
    rows: dict[Any, list[Row]] = {image["id"]: [] for image in images}
    for number, entry in enumerate(annotations, 1):
        what = f"annotation {entry.get('id', number)}"
        image, category = (_value(entry, name, what, file) for name in ("image_id", "category_id"))
        if not isinstance(image, int | str) or image not in rows:
            raise _refusal(file, f"{what} is of image {image!r}, which is not among its images")
        if not isinstance(category, int) or category not in index:
            raise _refusal(
                file, f"{what} is of category {category!r}, which is not among its categories"
            )
        box = _box(_value(entry, "bbox", what, file), what, file)
        rows[image].append((index[category], *box, bool(entry.get("iscrowd", 0))))
    kept = {image: unique(own) for image, own in rows.items()}
    if dropped := len(annotations) - sum(map(len, kept.values())):
        say(
            f"{file}: {dropped} of {len(annotations)} annotations are there twice: each counts once"
        )
    return [kept[image["id"]] for image in images]


def _box(value: Any, what: str, file: Path) -> tuple[float, float, float, float]:
    try:
        x, y, width, height = map(float, value)
        if not all(map(math.isfinite, (x, y, width, height))) or min(width, height) < 0:
            raise ValueError
    except (TypeError, ValueError):
        text = f"{what} has bbox {value!r:.60}, not [left, top, width, height] in pixels, sides 0 or more"
        raise _refusal(file, text) from None
    return x, y, width, height


def _check_boxes(
    file: Path, rows: Sequence[Sequence[Row]], sizes: Sequence[tuple[int, int] | None]
) -> None:
    """Raise an `SqError` if boxes cannot be left, top, width and height in pixels; say how many are doubtful."""
    total, beyond, shares = 0, 0, 0
    for own, size in zip(rows, sizes, strict=True):
        if size is None:
            continue
        height, width = size
        for _, x, y, w, h, _ in own:
            total += 1
            right, bottom = x + w, y + h
            beyond += min(x, y) < -BEYOND or right > width + BEYOND or bottom > height + BEYOND
            shares += max(right, bottom) <= 1
    wanted = "bbox must be [left, top, width, height] in pixels"
    if total and shares == total:
        raise SqError(
            f"{file}: all {total} boxes lie within the first pixel of their image: {wanted}, not in shares"
        )
    if beyond > total / 2:
        raise SqError(
            f"{file}: {beyond} of {total} boxes reach beyond their image: {wanted}, not [left, top, right, bottom]"
        )
    if beyond:
        say(
            f"{file}: {beyond} of {total} boxes reach beyond their image; they are taken as they are"
        )
