"""Images and objects in the two layouts of COCO."""

import codecs
import json
import os
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from cli_helpers import compose
from PIL import Image, ImageOps

from sq.config.instantiate import build
from sq.dataset import coco
from sq.dataset import loading as reading
from sq.errors import ImageError, SqError

CONF = Path(__file__).resolve().parents[2] / "conf"
NAMES = ["person", "bicycle", "car"]
BOX = {"image_id": 9, "category_id": 13, "bbox": [1, 2, 10, 4]}


def image(path, size=(40, 20), exif=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", size, 200).save(path, **({"exif": exif} if exif else {}))


@pytest.fixture
def yolo(tmp_path):
    """Two images a split; the second has no label file."""
    for split in ("train", "val"):
        for name in ("a.jpg", "b.PNG"):
            image(tmp_path / "images" / split / f"{split}_{name}")
        label = tmp_path / "labels" / split / f"{split}_a.txt"
        label.parent.mkdir(parents=True)
        label.write_text("2 0.5 0.5 0.25 0.5\n\n0 0.125 0.5 0.25 1\n")
    (tmp_path / "coco.yaml").write_text(
        "path: .\ntrain: images/train\nval: images/val\nnames: {0: person, 1: bicycle, 2: car}\n"
    )
    return tmp_path


def load_yolo(root, **knobs):
    own = {
        "name": "mine",
        "train": "train",
        "test": "val",
        "annotations": "coco.yaml",
        "skip_corrupt": False,
    }
    return coco.load(root=str(root), **own | knobs)


@pytest.fixture
def official(tmp_path):
    """COCO's JSON: category ids with gaps, a crowd, an image without objects, one on disk that is not in the JSON."""
    for split in ("train2017", "val2017"):
        for name in ("1.jpg", "2.jpg", "3.jpg"):
            image(tmp_path / "images" / split / name)
        write_json(tmp_path, split)
    return tmp_path


def write_json(root, split, **changes):
    spec = {
        "images": [
            {"id": 7, "file_name": "2.jpg", "height": 20, "width": 40},
            {"id": 9, "file_name": "1.jpg", "height": 20, "width": 40},
        ],
        "categories": [{"id": 90, "name": "c"}, {"id": 1, "name": "a"}, {"id": 13, "name": "b"}],
        "annotations": [
            {"id": 5, "image_id": 9, "category_id": 13, "bbox": [1.5, 2, 10, 4], "iscrowd": 0},
            {"id": 6, "image_id": 9, "category_id": 90, "bbox": [0, 0, 40, 20], "iscrowd": 1},
            {"id": 8, "image_id": 9, "category_id": 1, "bbox": [3, 3, 0, 2]},
        ],
    }
    file = root / "annotations" / f"instances_{split}.json"
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(spec | changes))
    return file


IMAGES = [
    {"id": 7, "file_name": "2.jpg", "height": 20, "width": 40},
    {"id": 9, "file_name": "1.jpg", "height": 20, "width": 40},
]


def load_official(root, **knobs):
    own = {
        "train": "images/train2017",
        "test": "images/val2017",
        "annotations": "annotations/instances_*.json",
    }
    return coco.load(root=str(root), **{"name": "coco", "skip_corrupt": False} | own | knobs)


def one_line(error):
    assert "\n" not in str(error.value)
    return str(error.value)


def test_data_yaml(yolo):
    data = load_yolo(yolo)
    assert (data.classes, data.name) == (3, "mine")
    assert data.train.ids == ["coco/train/train_a.jpg", "coco/train/train_b.PNG"]
    assert data.test.ids == ["coco/val/val_a.jpg", "coco/val/val_b.PNG"]
    first, second = data.test.y
    assert first.boxes.tolist() == [[15, 5, 25, 15], [0, 0, 10, 20]]
    assert first.boxes.dtype == torch.float32
    assert (first.classes.tolist(), first.crowd.tolist(), first.size) == (
        [2, 0],
        [False, False],
        (20, 40),
    )
    assert (second.boxes.shape, second.classes.dtype, second.size) == (
        (0, 4),
        torch.int64,
        (20, 40),
    )


def test_images_are_read_in_colour_also_by_other_processes(yolo):
    images = load_yolo(yolo).test
    read = pickle.loads(pickle.dumps(images.read))
    assert (read(1).mode, read(1).size, read(1).getpixel((0, 0))) == (
        "RGB",
        (40, 20),
        (200, 200, 200),
    )
    assert read.paths[1].endswith("val_b.PNG")


def corner(size, exif=None):
    """An image that is white in its top left quarter, with an EXIF orientation."""
    picture = Image.new("RGB", size)
    picture.paste((255, 255, 255), (0, 0, size[0] // 2, size[1] // 2))
    return picture, {"exif": exif.tobytes()} if exif else {}


def oriented(value):
    exif = Image.Exif()
    exif[0x0112] = value
    return exif


def save(path, size, orientation):
    picture, more = corner(size, oriented(orientation))
    picture.save(path, quality=100, **more)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_followed_beside_labels_of_yolo(yolo, orientation, capsys):
    """As by ultralytics, which reads images by OpenCV."""
    cv2 = pytest.importorskip("cv2")
    file = yolo / "images" / "val" / "val_a.jpg"
    save(file, (40, 20), orientation)
    (yolo / "labels" / "val" / "val_a.txt").write_text("1 0.25 0.25 0.5 0.5\n")
    data = load_yolo(yolo)
    seen = cv2.imread(str(file))
    read = np.asarray(data.test.read(0))
    assert data.test.y[0].size == read.shape[:2] == seen.shape[:2]
    assert np.abs(read[..., ::-1].astype(int) - seen).max() < 16
    height, width = seen.shape[:2]
    assert data.test.y[0].boxes.tolist() == [[0, 0, width / 2, height / 2]]
    said = capsys.readouterr().err
    assert ("1 of 2 images of val are turned as their EXIF orientation says" in said) == (
        orientation != 1
    )


@pytest.mark.parametrize("orientation", range(2, 9))
@pytest.mark.parametrize("turned", [False, True])
def test_exif_orientation_beside_json_is_what_its_sizes_say(official, orientation, turned, capsys):
    file = official / "images" / "val2017" / "1.jpg"
    save(file, (40, 20), orientation)
    swapped = orientation >= 5
    size = (20, 40) if turned and swapped else (40, 20)
    images = [{"id": 9, "file_name": "1.jpg", "width": size[0], "height": size[1]}]
    write_json(official, "val2017", images=images, annotations=[BOX | {"bbox": [0, 0, 5, 5]}])
    read = load_official(official).test.read(0)
    with Image.open(file) as stored:
        wanted = ImageOps.exif_transpose(stored) if turned and swapped else stored.copy()
    assert read.size == size
    assert np.array_equal(np.asarray(read), np.asarray(wanted))
    said = "1 of 1 images are turned as their EXIF orientation says" in capsys.readouterr().err
    assert said == (turned and swapped)


@pytest.mark.parametrize("turned", [False, True])
def test_exif_orientation_that_keeps_the_size_is_as_the_others_are(official, turned):
    save(official / "images" / "val2017" / "1.jpg", (40, 20), 6)
    save(official / "images" / "val2017" / "2.jpg", (40, 20), 3)  # by 180 degrees
    size = (20, 40) if turned else (40, 20)
    images = [
        {"id": 9, "file_name": "1.jpg", "width": size[0], "height": size[1]},
        {"id": 7, "file_name": "2.jpg", "width": 40, "height": 20},
    ]
    write_json(official, "val2017", images=images, annotations=[BOX])
    read = load_official(official).test.read(1)
    assert read.getpixel((39, 19) if turned else (0, 0))[0] > 240
    assert read.getpixel((0, 0) if turned else (39, 19))[0] < 16


def test_lists_of_images_and_of_names(yolo):
    (yolo / "val.txt").write_text("./images/val/val_b.PNG\n\nimages/val/val_a.jpg\n")
    (yolo / "coco.yaml").write_text(f"train: [images/train]\nval: val.txt\nnames: {NAMES}\n")
    data, own = load_yolo(yolo), yolo / "images" / "val"
    assert data.test.ids == ["coco/val/val_a.jpg", "coco/val/val_b.PNG"]
    assert data.test.read.paths == (str(own / "val_a.jpg"), str(own / "val_b.PNG"))
    assert [len(o.classes) for o in data.test.y] == [2, 0]


def test_only_the_last_images_folder_is_where_labels_are(yolo, tmp_path_factory):
    root = tmp_path_factory.mktemp("x") / "images" / "sub"
    root.parent.mkdir()
    yolo.rename(root)
    data = load_yolo(root)
    assert len(data.test.y[0].classes) == 2
    assert data.test.ids[0] == "coco/val/val_a.jpg"


def test_outline_gives_the_box_around_it(yolo):
    (yolo / "labels" / "val" / "val_a.txt").write_text("1 0.25 0.5 0.5 0.25 0.75 1.0\n")
    assert load_yolo(yolo).test.y[0].boxes.tolist() == [[10, 5, 30, 20]]


@pytest.mark.parametrize(
    "line",
    [
        "1 0.5 0.5 0.2",
        "1 0.5 0.5 0.2 1.2",
        "1 -0.5 0.5 0.2 0.2",
        "1.5 0.1 0.1 0.1 0.1",
        "-1 0.1 0.1 0.1 0.1",
        "car 0 0 1 1",
    ],
)
def test_malformed_label_line(yolo, line):
    label = yolo / "labels" / "val" / "val_a.txt"
    label.write_text(f"1 0.5 0.5 0.2 0.2\n{line}\n")
    with pytest.raises(
        SqError, match=r"val_a\.txt:2: got '.*', expected 'class x y width height'.*remove"
    ) as error:
        load_yolo(yolo)
    assert line in one_line(error)


def test_class_beyond_the_names(yolo):
    (yolo / "labels" / "val" / "val_a.txt").write_text("3 0.5 0.5 0.2 0.2\n")
    with pytest.raises(SqError, match=r"val_a\.txt:1: class 3, but names has 3 classes") as error:
        load_yolo(yolo)
    one_line(error)


@pytest.mark.parametrize("load", [load_yolo, load_official])
def test_root_without_the_files(tmp_path, load):
    for name in "gfedcba":
        (tmp_path / name).mkdir()
    with pytest.raises(
        SqError, match=r"but a, b, c, d, e \.\.\.: .*labels/SPLIT.*instances_SPLIT\.json"
    ) as error:
        load(tmp_path)
    one_line(error)


@pytest.mark.parametrize("load", [load_yolo, load_official])
def test_empty_root(tmp_path, load):
    with pytest.raises(SqError, match=r"but nothing: dataset\.root must hold"):
        load(tmp_path)


def test_root_that_is_a_file(yolo):
    with pytest.raises(SqError, match=r"but nothing: dataset\.root must hold"):
        load_yolo(yolo / "coco.yaml")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path: .\ntrain: images/train\nnames: [a, b, c]\n", "has no val or names"),
        ("path: .\ntrain: images/train\nval:\nnames: [a, b, c]\n", "has no val or names"),
        ("path: .\ntrain: images/train\nval: images/val\n", "has no train or names"),
        ("{", "has no train or names"),
        ("just text", "has no train or names"),
        (
            "path: coco\ntrain: images/train\nval: images/val\nnames: [a, b, c]\n",
            "no folder path=coco: .*write path: .",
        ),
        (
            "train: images/train\nval: images/val\nnc: 2\nnames: [a, b, c]\n",
            "nc=2, but names has 3 classes",
        ),
        (
            "train: images/train\nval: images/val\nnames: {1: a, 2: b, 3: c}\n",
            "number the classes from 0",
        ),
        (
            "train: images/train\nval: images/dev\nnames: [a, b, c]\n",
            "no image folder or .txt list .*dev",
        ),
        ("train: images/train\nval: empty\nnames: [a, b, c]\n", "empty holds no images"),
        (
            "train: images/train\nval: bare/images\nnames: [a, b, c]\n",
            "no image of val has a label file such as",
        ),
        (
            "train: images/train\nval: [images/val, images/val]\nnames: [a, b, c]\n",
            "names 2 images more than once",
        ),
        (
            "train: images/train\nval: images/train\nnames: [a, b, c]\n",
            "share 2 images .*two disjoint splits",
        ),
        (
            "train: images/train\nval: gone.txt\nnames: [a, b, c]\n",
            "4 of 5 images .* are missing .*0.jpg.*2.jpg ...\\)",
        ),
    ],
)
def test_data_yaml_that_is_wrong(yolo, text, message):
    (yolo / "empty").mkdir()
    image(yolo / "bare" / "images" / "1.jpg")
    (yolo / "gone.txt").write_text(
        "".join(f"images/val/{i}.jpg\n" for i in range(4)) + "images/val/val_a.jpg\n"
    )
    (yolo / "coco.yaml").write_text(text)
    with pytest.raises(SqError, match=message) as error:
        load_yolo(yolo)
    one_line(error)


def test_image_that_is_damaged_is_left_to_who_reads_it(yolo):
    (yolo / "images" / "val" / "val_a.jpg").write_bytes(b"not an image")
    data = load_yolo(yolo, skip_corrupt=True)
    assert data.test.skip_corrupt
    assert not load_yolo(yolo).test.skip_corrupt
    assert len(data.test.y[0].boxes) == 0
    with pytest.raises(ImageError, match=r"^it is text, not an image$"):
        data.test.read(0)


def test_json(official):
    data = load_official(official)
    assert (data.classes, data.name) == (3, "coco")
    assert data.test.ids == ["coco/val2017/1.jpg", "coco/val2017/2.jpg"]
    assert data.train.ids == ["coco/train2017/1.jpg", "coco/train2017/2.jpg"]
    first, second = data.test.y
    assert first.boxes.tolist() == [[1.5, 2, 11.5, 6], [0, 0, 40, 20], [3, 3, 3, 5]]
    assert (first.classes.tolist(), first.crowd.tolist(), first.size) == (
        [1, 2, 0],
        [False, True, False],
        (20, 40),
    )
    assert second.boxes.shape == (0, 4)
    assert data.test.read(0).size == (40, 20)


def test_json_whose_images_are_missing(official):
    images = [
        {"id": i, "file_name": f"{i}.jpg", "height": 20, "width": 40} for i in (1, 11, 12, 13, 14)
    ]
    write_json(official, "val2017", images=images, annotations=[])
    with pytest.raises(
        SqError,
        match=r"4 of 5 images .*instances_val2017\.json names are missing \(.*13\.jpg \.\.\.\)",
    ):
        load_official(official)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"annotations": [{"image_id": 1, "category_id": 1, "bbox": [0, 0, 1, 1]}]},
            r"annotation 1 is of image 1, which is not among its images",
        ),
        (
            {"annotations": [{"image_id": 7, "category_id": 2, "bbox": [0, 0, 1, 1]}]},
            r"annotation 1 is of category 2, which is not among its",
        ),
        (
            {"annotations": [{"image_id": 7, "category_id": 1, "bbox": [0, 0, 1]}]},
            r"annotation 1 has bbox \[0, 0, 1\], not \[left",
        ),
        ({"categories": None}, "has no list of objects `categories`"),
        ({"annotations": {}}, "has no list of objects `annotations`"),
        ({"annotations": []}, "none of the 2 images of images/val2017 holds an object"),
        (
            {"annotations": [BOX | {"iscrowd": 1}]},
            "none of the 2 images of images/val2017 holds an object",
        ),
        (
            {"annotations": [{**BOX, "bbox": [1, 1, -1, 2]}]},
            r"annotation 1 has bbox \[1, 1, -1, 2\], .*sides 0 or more",
        ),
        (
            {"annotations": [{**BOX, "bbox": [1, 1, float("nan"), 2]}]},
            "annotation 1 has bbox .*nan",
        ),
        ({"annotations": [{**BOX, "bbox": None}]}, "annotation 1 has bbox None"),
        (
            {"annotations": [{"image_id": 9, "category_id": 1, "id": 44}]},
            "annotation 44 has no bbox",
        ),
        (
            {"annotations": [{"image_id": 9, "bbox": [1, 1, 1, 1]}]},
            "annotation 1 has no category_id",
        ),
        (
            {"annotations": [{**BOX, "bbox": [0.1, 0.1, 0.5, 0.5]}]},
            "all 1 boxes lie within the first pixel .* shares",
        ),
        (
            {"annotations": [{**BOX, "bbox": [30, 5, 39, 15]}]},
            r"1 of 1 boxes reach beyond .* not \[left, top, right, b",
        ),
        (
            {
                "categories": [
                    {"id": 1, "name": "a"},
                    {"id": 13, "name": "b"},
                    {"id": 13, "name": "c"},
                ]
            },
            "the categories b, c have one id, 13: .*give each category an id of its own",
        ),
        (
            {"categories": [{"id": i, "name": n} for i, n in ((1, "a"), (13, "c"), (90, "b"))]},
            "class 1 is b in .*, c in",
        ),
        ({"categories": [{"name": "a"}]}, "category 1 has no id"),
        (
            {"categories": [{"id": "1", "name": "a"}]},
            "'1' is no whole number, as ids of categories are",
        ),
        (
            {"images": [*IMAGES, {**IMAGES[0], "file_name": "3.jpg"}]},
            "the images 2.jpg, 3.jpg have one id, 7: .*give each image an id of its own",
        ),
        (
            {"images": [*IMAGES, {**IMAGES[0], "id": 11}]},
            r"instances_val2017\.json names 1 image more than once \(coco/val2017/2.jpg\)",
        ),
        ({"images": [{"id": 9, "height": 20, "width": 40}]}, "image 9 has no file_name"),
        (
            {"images": [IMAGES[0], {**IMAGES[1], "width": 4.5}]},
            "image 1.jpg has height 20 and width 4.5, not pixels",
        ),
        (
            {"images": [IMAGES[0], {**IMAGES[1], "height": 40, "width": 20}]},
            "1 of 2 images have another width and height than it says .1.jpg: 20x40 there, 40x20 in the file",
        ),
        ({"images": [], "annotations": []}, "names no images"),
        (
            {"categories": [{"id": i} for i in (1, 13, 90, 91)]},
            "has 3 categories, images/val2017 4",
        ),
    ],
)
def test_json_that_is_wrong(official, changes, message):
    write_json(official, "val2017", **changes)
    with pytest.raises(SqError, match=message) as error:
        load_official(official)
    one_line(error)


def test_json_without_sizes_takes_those_of_the_files(official):
    images = [{name: own[name] for name in ("id", "file_name")} for own in IMAGES]
    for split in ("train2017", "val2017"):
        write_json(official, split, images=images)
    data = load_official(official)
    assert [own.size for own in data.train.y + data.test.y] == [(20, 40)] * 4


def test_sizes_of_the_training_split_are_compared_when_it_is_read(official):
    write_json(official, "train2017", images=[IMAGES[0], {**IMAGES[1], "height": 40, "width": 20}])
    train = load_official(official, skip_corrupt=True).train
    with pytest.raises(
        SqError, match=r"^coco/train2017/1\.jpg: the file is 40x20, its boxes are of .* 20x40"
    ) as error:
        reading.load(replace(train, workers=0), [0, 1], lambda image, resized: torch.zeros(1), "x")
    one_line(error)


def test_annotation_given_twice_counts_once(official, capsys):
    twice = [BOX, BOX | {"category_id": 1}, BOX | {"id": 3}, BOX | {"iscrowd": 1}]
    write_json(official, "val2017", annotations=twice)
    assert load_official(official).test.y[0].classes.tolist() == [1, 0, 1]
    assert (
        "instances_val2017.json: 1 of 4 annotations are there twice: each counts once"
        in capsys.readouterr().err
    )


def test_boxes_beyond_their_image_are_counted(official, capsys):
    beyond = [BOX, BOX | {"bbox": [30, 2, 11.5, 4]}, BOX | {"bbox": [30, 2, 10.5, 4]}]
    write_json(official, "val2017", annotations=beyond)
    assert load_official(official).test.y[0].boxes[1].tolist() == [30, 2, 41.5, 6]
    assert "1 of 3 boxes reach beyond their image" in capsys.readouterr().err


def test_file_names_of_windows(official):
    (official / "images" / "val2017" / "sub").mkdir()
    (official / "images" / "val2017" / "1.jpg").rename(
        official / "images" / "val2017" / "sub" / "1.jpg"
    )
    write_json(official, "val2017", images=[IMAGES[0], {**IMAGES[1], "file_name": "sub\\1.jpg"}])
    assert load_official(official).test.ids == ["coco/val2017/2.jpg", "coco/val2017/sub/1.jpg"]


def test_json_with_a_byte_order_mark(official):
    file = official / "annotations" / "instances_val2017.json"
    file.write_bytes(codecs.BOM_UTF8 + file.read_bytes())
    assert load_official(official).classes == 3


@pytest.mark.parametrize("load", [load_yolo, load_official])
def test_names_of_the_classes_are_known(official, yolo, load):
    (official / "coco.yaml").write_text(
        "path: .\ntrain: images/train\nval: images/val\nnames: [a, b, c]\n"
    )
    assert load(official).class_names == ("a", "b", "c")


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_labels_and_yaml_of_windows(yolo, encoding):
    label = yolo / "labels" / "val" / "val_a.txt"
    for file in (label, yolo / "coco.yaml"):
        file.write_bytes(file.read_text().replace("\n", "\r\n").encode(encoding))
    assert load_yolo(yolo).test.y[0].classes.tolist() == [2, 0]


@pytest.mark.parametrize("file", ["labels/val/val_a.txt", "coco.yaml", "val.txt"])
def test_text_in_latin_1_is_named(yolo, file):
    (yolo / "coco.yaml").write_text("train: images/train\nval: val.txt\nnames: [a, b, c]\n")
    (yolo / "val.txt").write_text("images/val/val_a.jpg\n")
    (yolo / file).write_bytes((yolo / file).read_bytes() + "# à peu près\n".encode("latin-1"))
    with pytest.raises(
        SqError, match=rf"{file}:\d: byte 0xe0 is not UTF-8: save the file as UTF-8"
    ) as error:
        load_yolo(yolo)
    one_line(error)


def test_label_line_given_twice_counts_once(yolo, capsys):
    label = yolo / "labels" / "val" / "val_a.txt"
    label.write_text(
        "2 0.5 0.5 0.25 0.5\n2 0.50 0.5 0.25 0.5\n1 0.5 0.5 0.25 0.5\n" + 2 * "0 0 0 1 0 1 1\n"
    )
    assert load_yolo(yolo).test.y[0].classes.tolist() == [2, 1, 0]
    assert "2 of 5 label lines of val are there twice: each counts once" in capsys.readouterr().err


def test_outlines_that_differ_may_have_one_box(yolo):
    (yolo / "labels" / "val" / "val_a.txt").write_text("0 0 0 1 0 1 1\n0 0 0 1 1 0 1\n")
    assert len(load_yolo(yolo).test.y[0].classes) == 2


def test_shares_may_be_beyond_the_image_as_far_as_ultralytics_tolerates(yolo):
    label = yolo / "labels" / "val" / "val_a.txt"
    label.write_text("0 1.01 0.5 0.1 0.5\n0 -0.01 0.5 0.1 0.5\n")
    assert len(load_yolo(yolo).test.y[0].classes) == 2
    label.write_text("0 1.02 0.5 0.1 0.5\n")
    with pytest.raises(SqError, match=r"val_a\.txt:1: got '0 1\.02"):
        load_yolo(yolo)


def test_images_without_labels_are_counted_where_they_are_most(yolo, capsys):
    load_yolo(yolo)
    assert capsys.readouterr().err == "", "one of two"
    image(yolo / "images" / "val" / "val_c.jpg")
    load_yolo(yolo)
    assert (
        "2 of 3 images of val have no label file: taken for images without objects"
        in capsys.readouterr().err
    )


def test_hidden_files_and_folders_with_the_names_of_images_are_none(yolo):
    (yolo / "images" / "val" / "._val_a.jpg").write_bytes(b"x")
    image(yolo / "images" / "val" / "deep.jpg" / "c.jpg")
    assert load_yolo(yolo).test.ids == [
        "coco/val/deep.jpg/c.jpg",
        "coco/val/val_a.jpg",
        "coco/val/val_b.PNG",
    ]


def test_folders_as_exports_of_roboflow_name_them(yolo):
    (yolo / "coco.yaml").write_text(
        "train: ../images/train\nval: ../images/val\nnc: 3\nnames: [a, b, c]\n"
    )
    assert load_yolo(yolo).test.ids == ["coco/val/val_a.jpg", "coco/val/val_b.PNG"]


def test_sixteen_bit_image_is_not_cut_to_eight(yolo):
    Image.fromarray(np.full((20, 40), 40000, np.uint16)).save(yolo / "images" / "val" / "val_c.png")
    with pytest.raises(ImageError, match=r"^it is 40x20 I;16, more than 8 bits a channel"):
        load_yolo(yolo).test.read(2)


@pytest.mark.parametrize("load", [load_yolo, load_official])
def test_empty_image_is_named_or_left_out(yolo, official, load):
    name = "val/val_a.jpg" if load is load_yolo else "val2017/1.jpg"
    (yolo / "images" / name).write_bytes(b"")

    def read(**knobs):
        test = replace(load(yolo, **knobs).test, workers=0)
        return reading.load(test, range(len(test.ids)), lambda image, resized: torch.zeros(1), "x")

    with pytest.raises(
        SqError, match=rf"1 of 2 images cannot be read \(coco/{name}: it is empty \(0 bytes\)\)"
    ):
        read()
    assert len(read(skip_corrupt=True).ids) == 1


def test_file_that_is_no_json(official):
    (official / "annotations" / "instances_val2017.json").write_text("{")
    with pytest.raises(
        SqError, match=r"instances_val2017\.json is not COCO instances JSON: .* \(JSONDecodeError"
    ):
        load_official(official)


def test_json_without_its_image_folder(official):
    (official / "images" / "val2017").rename(official / "elsewhere")
    with pytest.raises(SqError, match=r"no image folder .*val2017"):
        load_official(official)


def test_both_layouts_give_the_same_objects(official):
    boxes = {"train2017": ["1 0.1625 0.2 0.25 0.2", "0 0.075 0.2 0 0.1"]}
    boxes["val2017"] = boxes["train2017"]
    for split, lines in boxes.items():
        label = official / "labels" / split / "1.txt"
        label.parent.mkdir(parents=True)
        label.write_text("\n".join(lines))
    (official / "coco.yaml").write_text(
        f"train: images/train2017\nval: images/val2017\nnames: {NAMES}\n"
    )
    by_yaml, by_json = load_yolo(official).test, load_official(official).test
    assert by_yaml.ids[:2] == by_json.ids
    plain = ~by_json.y[0].crowd
    torch.testing.assert_close(by_yaml.y[0].boxes, by_json.y[0].boxes[plain])
    assert torch.equal(by_yaml.y[0].classes, by_json.y[0].classes[plain])


@pytest.mark.parametrize("choice", ["coco", "coco_sample"])
def test_config_fits_and_names_its_set(choice):
    config, choices = compose(f"dataset={choice}")
    part = config["dataset"]
    assert choices["metric"] == "coco_map"
    assert compose("metric=top1", f"dataset={choice}")[1]["metric"] == "top1", (
        "what is typed goes first"
    )
    assert part["name"] == choice
    build(part, "dataset")


def test_sample(needs_data):
    data = build(compose("dataset=coco_sample")[0]["dataset"], "dataset")()
    assert (len(data.train.ids), len(data.test.ids), data.classes, data.name) == (
        128,
        128,
        80,
        "coco_sample",
    )
    assert data.test.ids[0] == "coco/val/000000000139.jpg"
    assert sum(len(o.classes) for o in data.test.y) == 898
    assert not any(os.environ["SQ_DATA"] in own for own in data.test.ids)
    for i in range(0, 128, 16):
        width, height = data.test.read(i).size
        true = data.test.y[i]
        assert true.size == (height, width)
        assert (true.boxes[:, 2] <= width + 0.5).all()
        assert (true.boxes[:, 3] <= height + 0.5).all()
        assert (true.boxes >= -0.5).all()
