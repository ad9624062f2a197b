"""COCO's JSON annotations: the images, categories and boxes of a split in one file."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sq.core.progress import say
from sq.dataset.image_file import Header, read_header
from sq.dataset.objects import Annotated, Row, to_objects, turns, unique
from sq.errors import ImageError, SqError
from sq.types.images import Objects

NAMED = 3  # names in a message
MARGIN = 1.0  # pixels that a box may reach beyond its image without a message
LISTS = ("images", "annotations", "categories")

Size = tuple[int, int]  # (height, width)


def read(file: Path, folder: Path, split: str, *, evaluated: bool) -> Annotated:
    """Return the images that `file` names in folder/split, with their objects.

    Sizes in the JSON are compared with those of the files: here if the split is `evaluated`,
    otherwise when an image is read. A file whose EXIF orientation turns it by 90 degrees is read in
    the orientation that has the JSON's size. If that does not tell, it is read as the others of its
    split are, or as stored, as in COCO's tools.

    Raises
    ------
    SqError : the file or the folder is missing; the JSON is malformed, contradicts itself or the
        images' sizes
    """
    if not (folder / split).is_dir():
        raise SqError(
            f"no image folder {folder / split}: correct dataset.train and dataset.test, or copy it "
            "there"
        )
    lists = _lists(file)
    class_of_id, names = _categories(lists["categories"], file)
    images = _images(lists["images"], file)
    paths = [folder / split / str(image["file_name"]).replace("\\", "/") for image in images]
    headers = _headers(paths, images, evaluated)
    turned = _boxes_are_turned(images, headers)
    sizes = [_size(image, header, file) for image, header in zip(images, headers, strict=True)]
    _check_sizes(file, images, headers, sizes)
    rows = _rows(lists["annotations"], class_of_id, images, file)
    _check_boxes(file, rows, sizes)
    objects: list[Objects] = []
    for rows_of_image, size in zip(rows, sizes, strict=True):
        objects.append(to_objects(rows_of_image, size or (0, 0)))
    return Annotated(paths, objects, names, sizes, turned)


def _lists(file: Path) -> dict[str, list[dict[str, Any]]]:
    """Return the three lists of objects in `file`."""
    try:
        content = json.loads(file.read_bytes())
    except OSError as error:
        raise SqError(f"{file} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise _refusal(file, f"it cannot be parsed ({reason})") from error
    if not isinstance(content, dict):
        raise _refusal(file, "it holds no mapping")
    for name in LISTS:
        entries = content.get(name)
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            raise _refusal(file, f"it has no list of objects `{name}`")
    return content


def _refusal(file: Path, fact: str) -> SqError:
    return SqError(
        f"{file} is not COCO instances JSON: {fact}: it must have images (id, file_name), "
        "annotations (image_id, category_id, bbox) of these images, and categories (id, name)"
    )


def _value(entry: Mapping[str, Any], key: str, entry_name: str, file: Path) -> Any:
    if key not in entry:
        raise _refusal(file, f"{entry_name} has no {key}")
    return entry[key]


@dataclass(frozen=True)
class _Kind:
    """A kind of entries with ids: its words in messages, types of ids, and key of the name."""

    singular: str
    plural: str
    types: tuple[type, ...]
    allowed: str
    label: str


CATEGORY = _Kind("category", "categories", (int,), "whole number", "name")
IMAGE = _Kind("image", "images", (int, str), "number or text", "file_name")


def _check_ids(entries: Sequence[Mapping[str, Any]], kind: _Kind, file: Path) -> None:
    """Raise an `SqError` if an entry has no id, one of a wrong type, or that of another entry."""
    ids: list[Any] = []
    for number, entry in enumerate(entries, 1):
        ids.append(_value(entry, "id", f"{kind.singular} {number}", file))
    for entry_id in ids:
        if not isinstance(entry_id, kind.types):
            raise _refusal(file, f"{entry_id!r} is no {kind.allowed}, as ids of {kind.plural} are")
    repeated = [entry_id for entry_id, count in Counter(ids).items() if count > 1]
    if repeated:
        names = [str(entry.get(kind.label)) for entry in entries if entry["id"] == repeated[0]]
        raise SqError(
            f"{file}: the {kind.plural} {', '.join(names[:NAMED])} have one id, {repeated[0]}: "
            f"their objects cannot be told apart; give each {kind.singular} an id of its own"
        )


def _categories(
    entries: Sequence[Mapping[str, Any]], file: Path
) -> tuple[dict[Any, int], list[str]]:
    """Return the class number of each category id, and the names of the classes by number."""
    _check_ids(entries, CATEGORY, file)
    class_of_id: dict[Any, int] = {}
    names: list[str] = []
    for entry in sorted(entries, key=lambda entry: entry["id"]):
        class_of_id[entry["id"]] = len(names)
        names.append(str(entry.get("name", entry["id"])))
    return class_of_id, names


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
    """Return the headers of images; None where it is not needed or cannot be read."""
    headers: list[Header | None] = []
    for path, image in zip(paths, images, strict=True):
        has_size = image.get("width") and image.get("height")
        header = None
        if evaluated or not has_size:
            # An unreadable file is reported when the image is read: it may be skipped there.
            with suppress(ImageError):
                header = read_header(path)
        headers.append(header)
    return headers


def _size(image: Mapping[str, Any], header: Header | None, file: Path) -> Size | None:
    """Return the size that boxes of an image are pixels of: the JSON's, else the file's."""
    if not (image.get("width") and image.get("height")):
        return header.upright if header else None
    try:
        height, width = float(image["height"]), float(image["width"])
        is_valid = height.is_integer() and width.is_integer() and min(height, width) > 0
    except (TypeError, ValueError):
        is_valid = False
    if not is_valid:
        size = f"height {image['height']!r} and width {image['width']!r}"
        raise _refusal(file, f"image {image['file_name']} has {size}, not pixels")
    return int(height), int(width)


def _boxes_are_turned(
    images: Sequence[Mapping[str, Any]], headers: Sequence[Header | None]
) -> bool:
    """Return whether boxes are of images turned by EXIF, if all images whose size tells agree."""
    votes: set[bool] = set()
    for image, header in zip(images, headers, strict=True):
        if header and header.upright != header.size:
            size = (image.get("height"), image.get("width"))
            if size in (header.upright, header.size):
                votes.add(size == header.upright)
    return votes == {True}


def _check_sizes(
    file: Path,
    images: Sequence[Mapping[str, Any]],
    headers: Sequence[Header | None],
    sizes: Sequence[Size | None],
) -> None:
    """Raise an `SqError` if images have another size than the JSON says; log the number turned."""
    differing: list[str] = []
    turned = 0
    for image, header, size in zip(images, headers, sizes, strict=True):
        if header is None or size is None:
            continue
        if size not in (header.size, header.upright):
            differing.append(
                f"{image['file_name']}: {size[1]}x{size[0]} there, "
                f"{header.size[1]}x{header.size[0]} in the file"
            )
        elif turns(header, size, turned=False):
            turned += 1
    if differing:
        more = "; ..." if len(differing) > NAMED else ""
        raise SqError(
            f"{file}: {len(differing)} of {len(images)} images have another width and height than "
            f"it says ({'; '.join(differing[:NAMED])}{more}): their boxes would be elsewhere; "
            "correct the JSON, or copy the images it was made for"
        )
    if turned:
        say(
            f"{file}: {turned} of {len(images)} images are turned as their EXIF orientation says: "
            "its sizes are so"
        )


def _rows(
    annotations: Sequence[Mapping[str, Any]],
    class_of_id: Mapping[Any, int],
    images: Sequence[Mapping[str, Any]],
    file: Path,
) -> list[list[Row]]:
    """Return the rows of each image without repetitions."""
    rows: dict[Any, list[Row]] = {image["id"]: [] for image in images}
    for number, entry in enumerate(annotations, 1):
        name = f"annotation {entry.get('id', number)}"
        image = _value(entry, "image_id", name, file)
        category = _value(entry, "category_id", name, file)
        # Types first: a value that cannot be hashed must not raise.
        if not isinstance(image, int | str) or image not in rows:
            raise _refusal(file, f"{name} is of image {image!r}, which is not among its images")
        if not isinstance(category, int) or category not in class_of_id:
            raise _refusal(
                file, f"{name} is of category {category!r}, which is not among its categories"
            )
        box = _box(_value(entry, "bbox", name, file), name, file)
        rows[image].append((class_of_id[category], *box, bool(entry.get("iscrowd", 0))))
    unique_rows = [unique(rows[image["id"]]) for image in images]
    repeated = len(annotations) - sum(len(rows_of_image) for rows_of_image in unique_rows)
    if repeated:
        say(
            f"{file}: {repeated} of {len(annotations)} annotations are there twice: each counts "
            "once"
        )
    return unique_rows


def _box(value: Any, name: str, file: Path) -> tuple[float, float, float, float]:
    """Return left, top, width and height of a box in pixels."""
    try:
        x, y, width, height = map(float, value)
        if not all(map(math.isfinite, (x, y, width, height))) or min(width, height) < 0:
            raise ValueError
    except (TypeError, ValueError):
        raise _refusal(
            file,
            f"{name} has bbox {value!r:.60}, not [left, top, width, height] in pixels, sides 0 or "
            "more",
        ) from None
    return x, y, width, height


def _check_boxes(file: Path, rows: Sequence[Sequence[Row]], sizes: Sequence[Size | None]) -> None:
    """Raise an `SqError` if boxes are not in pixels, or not left, top, width and height.

    The number of doubtful boxes is logged.
    """
    total, outside, in_shares = 0, 0, 0
    for rows_of_image, size in zip(rows, sizes, strict=True):
        if size is None:
            continue
        height, width = size
        for _, x, y, w, h, _ in rows_of_image:
            right, bottom = x + w, y + h
            total += 1
            if min(x, y) < -MARGIN or right > width + MARGIN or bottom > height + MARGIN:
                outside += 1
            if max(right, bottom) <= 1:
                in_shares += 1
    expected = "bbox must be [left, top, width, height] in pixels"
    if total and in_shares == total:
        raise SqError(
            f"{file}: all {total} boxes lie within the first pixel of their image: {expected}, not "
            "in shares"
        )
    if outside > total / 2:
        raise SqError(
            f"{file}: {outside} of {total} boxes reach beyond their image: {expected}, not [left, "
            "top, right, bottom]"
        )
    if outside:
        say(
            f"{file}: {outside} of {total} boxes reach beyond their image; they are taken as they "
            "are"
        )
