"""COCO, or images with its layout: JSON annotations, or a data YAML and a text file per image."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePath

from PIL import Image

from sq.config.data_paths import find
from sq.core.wording import quantity
from sq.dataset import coco_json, yolo_labels
from sq.dataset.image_file import colour, header_of, read_image, upright
from sq.dataset.objects import Annotated, turns
from sq.errors import SqError
from sq.types.images import Dataset, Images

YAML = (".yaml", ".yml")
NAMED = 3  # images in a message
NAMED_FILES = 5


@dataclass(frozen=True)
class Reader:
    """Reads images by index, in the orientation of their boxes."""

    paths: tuple[str, ...]
    # (height, width) that boxes are pixels of, where it is known
    sizes: tuple[tuple[int, int] | None, ...]
    turned: bool  # images are turned by EXIF, if their size does not tell

    def __call__(self, i: int) -> Image.Image:
        """Return image `i` in RGB; raise an `SqError` if its size is not that of its boxes."""
        image = read_image(Path(self.paths[i]))
        if turns(header_of(image), self.sizes[i], turned=self.turned):
            image = upright(image)
        return colour(image)


def load(
    *, name: str, root: str, train: str, test: str, annotations: str, skip_corrupt: bool
) -> Dataset:
    """Load two disjoint splits in one of two layouts, which `annotations` decides.

    A data YAML (.yaml, .yml) has the keys `train`, `val` ... (image folders, or .txt lists of
    images; relative to its key `path`, which is relative to the YAML's folder) and `names` (a list,
    or a mapping from 0 on). The objects of ``images/x/1.jpg`` are in ``labels/x/1.txt``, one per
    line: class and box (centre x, centre y, width, height) or outline (x, y, x, y, ...), as shares
    of the image's sides. An image without that file has no objects. With COCO JSON, classes are the
    sorted category ids, counted from 0, and only images that the JSON names are loaded.

    A box without width or height is kept, as in COCO's tools: an object that no detection can
    match. A repeated box counts once. Images are read in the orientation of their boxes: turned by
    EXIF with YOLO labels, as in ultralytics; the one that has the size in the JSON with COCO JSON.

    Parameters
    ----------
    name : of the image set
    root : the folder; a relative path is looked for here, then in $SQ_DATA
    train, test : keys of the data YAML; or image folders in `root`, with COCO JSON
    annotations : a file in `root`: a data YAML; or COCO JSON, where * stands for the last part of
        `train` and `test`
    skip_corrupt : leave out images that cannot be read, instead of stopping

    Raises
    ------
    SqError : a file, folder or image is missing; labels, YAML or JSON are malformed, or belong to
        images of another size; a class is unknown; the splits share images or differ in their
        classes; there are no objects

    Source
    ------
    Lin et al. 2014, Microsoft COCO: Common Objects in Context;
    https://cocodataset.org/#format-data.
    """
    folder = find(root, "dataset.root")
    calibration = _read(folder, annotations, train, evaluated=False)
    evaluated = _read(folder, annotations, test, evaluated=True)
    # One program wrote the annotations of both splits.
    calibration = replace(calibration, turned=evaluated.turned)
    _check_names(folder, (train, calibration.names), (test, evaluated.names))
    has_objects = any((~objects.crowd).any() for objects in evaluated.objects)
    if None not in evaluated.sizes and not has_objects:
        raise SqError(
            f"{folder}: none of the {len(evaluated.paths)} images of {test} holds an object: check "
            "its labels"
        )
    first = _images(folder, _file(folder, annotations, train), calibration, skip_corrupt)
    second = _images(folder, _file(folder, annotations, test), evaluated, skip_corrupt)
    shared = sorted({*first.ids} & {*second.ids})
    if shared:
        raise SqError(
            f"dataset.train={train} and dataset.test={test} share {quantity(shared, 'image')} "
            f"({shared[0]} ...): figures on images that calibration has seen would flatter; give "
            "two disjoint splits"
        )
    return Dataset(first, second, len(evaluated.names), name, tuple(evaluated.names))


def _file(folder: Path, annotations: str, split: str) -> Path:
    """Return the file with the annotations of `split`."""
    if annotations.endswith(YAML):
        return folder / annotations
    return folder / annotations.replace("*", PurePath(split).name)


def _read(folder: Path, annotations: str, split: str, *, evaluated: bool) -> Annotated:
    """Return one split; images of an `evaluated` one are compared with their annotations."""
    file = _file(folder, annotations, split)
    if not file.is_file():
        names = sorted(path.name for path in folder.glob("*"))
        content = ", ".join(names[:NAMED_FILES]) or "nothing"
        more = " ..." if len(names) > NAMED_FILES else ""
        raise SqError(
            f"{folder} has no {file.relative_to(folder)} but {content}{more}: dataset.root must "
            "hold a data YAML with images/SPLIT and labels/SPLIT (dataset=coco_sample), or "
            "images/SPLIT and annotations/instances_SPLIT.json (dataset=coco)"
        )
    if file.suffix in YAML:
        annotated = yolo_labels.read(file, folder, split)
    else:
        annotated = coco_json.read(file, folder, split, evaluated=evaluated)
    missing = [str(path) for path in annotated.paths if not path.is_file()]
    if missing:
        more = " ..." if len(missing) > NAMED else ""
        raise SqError(
            f"{len(missing)} of {len(annotated.paths)} images that {file} names are missing "
            f"({', '.join(missing[:NAMED])}{more}): copy them there"
        )
    return annotated


def _images(folder: Path, file: Path, annotated: Annotated, skip_corrupt: bool) -> Images:
    paths = tuple(map(str, annotated.paths))
    reader = Reader(paths, tuple(annotated.sizes), annotated.turned)
    ids = _ids(annotated.paths, file, folder)
    return Images(ids, annotated.objects, reader, skip_corrupt=skip_corrupt, workers=None)


def _check_names(folder: Path, train: tuple[str, list[str]], test: tuple[str, list[str]]) -> None:
    """Raise an `SqError` unless both splits (name, class names) have the same classes in order."""
    train_split, train_names = train
    test_split, test_names = test
    if len(train_names) != len(test_names):
        raise SqError(
            f"{folder}: {train_split} has {len(train_names)} categories, {test_split} "
            f"{len(test_names)}: use annotations of one data set"
        )
    for k, (first, second) in enumerate(zip(train_names, test_names, strict=True)):
        if first != second:
            raise SqError(
                f"{folder}: class {k} is {first} in {train_split}, {second} in {test_split}: use "
                "annotations of one data set"
            )


def _ids(paths: Sequence[Path], file: Path, folder: Path) -> list[str]:
    """Return ids without folders of this machine: the path in `folder`, after its last images/."""
    ids: list[str] = []
    for path in paths:
        parts = path.relative_to(folder).parts if path.is_relative_to(folder) else path.parts[-2:]
        start = 0
        for position, part in enumerate(parts[:-1], 1):
            if part == "images":
                start = position
        ids.append("/".join(("coco", *parts[start:])))
    repeated = [name for name, count in Counter(ids).items() if count > 1]
    if repeated:
        raise SqError(
            f"{file} names {quantity(repeated, 'image')} more than once "
            f"({', '.join(repeated[:NAMED])}): name each once"
        )
    return ids
