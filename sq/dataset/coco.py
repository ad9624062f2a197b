"""COCO, or any images laid out as COCO is: with its JSON annotations, or with a data YAML and a text file an image."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
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


@dataclass(frozen=True)
class Reader:
    """Reads an image by its place, in the orientation that its boxes are of."""

    paths: tuple[str, ...]
    # (height, width) that boxes are pixels of, where it is known
    sizes: tuple[tuple[int, int] | None, ...]
    turned: bool  # images are turned as EXIF says, where their size does not tell

    def __call__(self, i: int) -> Image.Image:
        """Return image `i` in RGB; raise an `SqError` if it is not of the size that its boxes are of."""
        image = read_image(Path(self.paths[i]))
        if turns(header_of(image), self.sizes[i], turned=self.turned):
            image = upright(image)
        return colour(image)


def load(
    *, name: str, root: str, train: str, test: str, annotations: str, skip_corrupt: bool
) -> Dataset:
    """Load two disjoint splits in one of two layouts; which one, `annotations` says.

    A data YAML (.yaml, .yml) has the keys `train`, `val` ... (image folders, or .txt lists of
    images; relative to its key `path`, and that to the YAML's folder) and `names` (a list, or a
    mapping from 0 on). The objects of ``images/x/1.jpg`` stand in ``labels/x/1.txt``, a line each:
    class and box (centre x, centre y, width, height) or outline (x, y, x, y, ...), as shares of the
    image's sides; without that file there are none. COCO JSON: classes are the sorted category ids,
    counted from 0, and only images that the JSON names are taken.

    A box without width or height is kept, as COCO's tools keep it: an object that no detection can
    match. One that is there twice counts once. Images are read in the orientation that boxes are
    of: turned as EXIF says beside YOLO's labels, as ultralytics does; the one that has the size in
    a JSON.

    Parameters
    ----------
    name : of the image set
    root : the folder; a relative path is looked for here, then in $SQ_DATA
    train, test : keys of the data YAML; or image folders in `root`, with COCO JSON
    annotations : file in `root`: a data YAML; or COCO JSON, where * stands for the last part of
    `train` and `test`
    skip_corrupt : leave out images that cannot be read, where that is an error otherwise

    Raises
    ------
    SqError : a file, folder or image is missing; labels, YAML or JSON are malformed, or of images
    of another size; a
        class is unknown; the splits share images or differ in their classes; there is nothing to
        find

    Source
    ------
    Lin et al. 2014, Microsoft COCO: Common Objects in Context;
    https://cocodataset.org/#format-data.
    """
    folder = find(root, "dataset.root")
    seen = _read(folder, annotations, train, evaluated=False)
    evaluated = _read(folder, annotations, test, evaluated=True)
    seen = replace(seen, turned=evaluated.turned)  # one program made both
    _check_names(folder, (train, seen.names), (test, evaluated.names))
    if None not in evaluated.sizes and not any((~own.crowd).any() for own in evaluated.objects):
        raise SqError(
            f"{folder}: none of the {len(evaluated.paths)} images of {test} holds an object: check its labels"
        )
    splits = ((train, seen), (test, evaluated))
    first, second = (
        _images(folder, _file(folder, annotations, own), read, skip_corrupt) for own, read in splits
    )
    if both := sorted({*first.ids} & {*second.ids}):
        raise SqError(
            f"dataset.train={train} and dataset.test={test} share {quantity(both, 'image')} ({both[0]} ...): "
            "figures on images that calibration has seen would flatter; give two disjoint splits"
        )
    return Dataset(first, second, len(evaluated.names), name, tuple(evaluated.names))


def _file(folder: Path, annotations: str, split: str) -> Path:
    """Return the file that annotates `split`."""
    return folder / (
        annotations
        if annotations.endswith(YAML)
        else annotations.replace("*", PurePath(split).name)
    )


def _read(folder: Path, annotations: str, split: str, *, evaluated: bool) -> Annotated:
    """Return one split; the images of one that is `evaluated` are compared with their annotations."""
    file = _file(folder, annotations, split)
    if not file.is_file():
        names = sorted(own.name for own in folder.glob("*"))
        raise SqError(
            f"{folder} has no {file.relative_to(folder)} but {', '.join(names[:5]) or 'nothing'}"
            f"{' ...' if names[5:] else ''}: dataset.root must hold a data YAML with images/SPLIT and labels/SPLIT "
            "(dataset=coco_sample), or images/SPLIT and annotations/instances_SPLIT.json (dataset=coco)"
        )
    if file.suffix in YAML:
        read = yolo_labels.read(file, folder, split)
    else:
        read = coco_json.read(file, folder, split, evaluated=evaluated)
    if gone := [str(path) for path in read.paths if not path.is_file()]:
        raise SqError(
            f"{len(gone)} of {len(read.paths)} images that {file} names are missing ({', '.join(gone[:3])}"
            f"{' ...' if gone[3:] else ''}): copy them there"
        )
    return read


def _images(folder: Path, file: Path, read: Annotated, skip_corrupt: bool) -> Images:
    reader = Reader(tuple(map(str, read.paths)), tuple(read.sizes), read.turned)
    ids = _ids(read.paths, file, folder)
    return Images(ids, read.objects, reader, skip_corrupt=skip_corrupt, workers=None)


def _check_names(folder: Path, train: tuple[str, list[str]], test: tuple[str, list[str]]) -> None:
    """Raise an `SqError` unless both splits, each with its classes, have the same ones in the same order."""
    (first, seen), (second, evaluated) = train, test
    if len(seen) != len(evaluated):
        raise SqError(
            f"{folder}: {first} has {len(seen)} categories, {second} {len(evaluated)}: use annotations of one data set"
        )
    for k, pair in enumerate(zip(seen, evaluated, strict=True)):
        if pair[0] != pair[1]:
            raise SqError(
                f"{folder}: class {k} is {pair[0]} in {first}, {pair[1]} in {second}: use annotations of one data set"
            )


def _ids(paths: Iterable[Path], file: Path, folder: Path) -> list[str]:
    """Return ids that name no folder of this machine: the path in `folder`, after the last images/ if there is one."""
    ids = []
    for path in paths:
        parts = path.relative_to(folder).parts if path.is_relative_to(folder) else path.parts[-2:]
        last = max((i for i, part in enumerate(parts[:-1], 1) if part == "images"), default=0)
        ids.append("/".join(("coco", *parts[last:])))
    if twice := [own for own, count in Counter(ids).items() if count > 1]:
        raise SqError(
            f"{file} names {quantity(twice, 'image')} more than once ({', '.join(twice[:3])}): name each once"
        )
    return ids
