"""Images and objects in the two layouts of COCO."""

import json
import os
import pickle
from pathlib import Path

import pytest
import torch
from cli_helpers import compose
from PIL import Image

from sq.build import build
from sq.dataset import coco
from sq.errors import SqError

CONF = Path(__file__).resolve().parents[2] / "conf"
NAMES = ["person", "bicycle", "car"]


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
    own = {"name": "mine", "train": "train", "test": "val", "annotations": "coco.yaml", "skip_corrupt": False}
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


def load_official(root, **knobs):
    own = {"train": "images/train2017", "test": "images/val2017", "annotations": "annotations/instances_*.json"}
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
    assert (first.classes.tolist(), first.crowd.tolist(), first.size) == ([2, 0], [False, False], (20, 40))
    assert (second.boxes.shape, second.classes.dtype, second.size) == ((0, 4), torch.int64, (20, 40))


def test_images_are_read_in_colour_also_by_other_processes(yolo):
    images = load_yolo(yolo).test
    read = pickle.loads(pickle.dumps(images.read))
    assert (read(1).mode, read(1).size, read(1).getpixel((0, 0))) == ("RGB", (40, 20), (200, 200, 200))
    assert read.paths[1].endswith("val_b.PNG")


def test_exif_orientation_is_ignored(yolo):
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees
    image(yolo / "images" / "val" / "val_a.jpg", exif=exif)
    data = load_yolo(yolo)
    assert data.test.y[0].size == (20, 40)
    assert data.test.read(0).size == (40, 20)


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
    with pytest.raises(SqError, match=r"val_a\.txt:2: got '.*', expected 'class x y width height'.*remove") as error:
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
    with pytest.raises(SqError, match=r"but a, b, c, d, e \.\.\.: .*labels/SPLIT.*instances_SPLIT\.json") as error:
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
        ("train: images/train\nval: images/val\nnames: {1: a, 2: b, 3: c}\n", "number the classes from 0"),
        ("train: images/train\nval: images/dev\nnames: [a, b, c]\n", "no image folder or .txt list .*dev"),
        ("train: images/train\nval: empty\nnames: [a, b, c]\n", "empty holds no images"),
        ("train: images/train\nval: bare/images\nnames: [a, b, c]\n", "no image of val has a label file such as"),
        ("train: images/train\nval: [images/val, images/val]\nnames: [a, b, c]\n", "names 2 images more than once"),
        ("train: images/train\nval: images/train\nnames: [a, b, c]\n", "share 2 images .*two disjoint splits"),
        (
            "train: images/train\nval: gone.txt\nnames: [a, b, c]\n",
            "4 of 5 images .* are missing .*0.jpg.*2.jpg ...\\)",
        ),
    ],
)
def test_data_yaml_that_is_wrong(yolo, text, message):
    (yolo / "empty").mkdir()
    image(yolo / "bare" / "images" / "1.jpg")
    (yolo / "gone.txt").write_text("".join(f"images/val/{i}.jpg\n" for i in range(4)) + "images/val/val_a.jpg\n")
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
    with pytest.raises(OSError, match="cannot identify"):
        data.test.read(0)


def test_json(official):
    data = load_official(official)
    assert (data.classes, data.name) == (3, "coco")
    assert data.test.ids == ["coco/val2017/1.jpg", "coco/val2017/2.jpg"]
    assert data.train.ids == ["coco/train2017/1.jpg", "coco/train2017/2.jpg"]
    first, second = data.test.y
    assert first.boxes.tolist() == [[1.5, 2, 11.5, 6], [0, 0, 40, 20], [3, 3, 3, 5]]
    assert (first.classes.tolist(), first.crowd.tolist(), first.size) == ([1, 2, 0], [False, True, False], (20, 40))
    assert second.boxes.shape == (0, 4)
    assert data.test.read(0).size == (40, 20)


def test_json_whose_images_are_missing(official):
    images = [{"id": i, "file_name": f"{i}.jpg", "height": 2, "width": 4} for i in (1, 11, 12, 13, 14)]
    write_json(official, "val2017", images=images, annotations=[])
    with pytest.raises(
        SqError, match=r"4 of 5 images .*instances_val2017\.json names are missing \(.*13\.jpg \.\.\.\)"
    ):
        load_official(official)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"annotations": [{"image_id": 1, "category_id": 1, "bbox": [0, 0, 1, 1]}]}, r"\(KeyError: 1\)"),
        ({"annotations": [{"image_id": 7, "category_id": 2, "bbox": [0, 0, 1, 1]}]}, r"\(KeyError: 2\)"),
        ({"annotations": [{"image_id": 7, "category_id": 1, "bbox": [0, 0, 1]}]}, r"\(ValueError: "),
        ({"categories": None}, r"\(TypeError: "),
        ({"images": [], "annotations": []}, "names no images"),
        ({"categories": [{"id": i} for i in (1, 13, 90, 91)]}, "has 3 categories, images/val2017 4"),
    ],
)
def test_json_that_is_wrong(official, changes, message):
    write_json(official, "val2017", **changes)
    with pytest.raises(SqError, match=message) as error:
        load_official(official)
    one_line(error)


def test_file_that_is_no_json(official):
    (official / "annotations" / "instances_val2017.json").write_text("{")
    with pytest.raises(SqError, match=r"instances_val2017\.json is not COCO instances JSON \(JSONDecodeError"):
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
    (official / "coco.yaml").write_text(f"train: images/train2017\nval: images/val2017\nnames: {NAMES}\n")
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
    assert compose("metric=top1", f"dataset={choice}")[1]["metric"] == "top1", "what is typed goes first"
    assert part["name"] == choice
    build(part, "dataset")


def test_sample(needs_data):
    data = build(compose("dataset=coco_sample")[0]["dataset"], "dataset")()
    assert (len(data.train.ids), len(data.test.ids), data.classes, data.name) == (128, 128, 80, "coco_sample")
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
