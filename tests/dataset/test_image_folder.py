"""Images in class folders: which class an image is of, and what is said of folders laid out otherwise."""

import os
from pathlib import Path

import pytest
from cli_helpers import compose
from PIL import Image

from sq.build import build
from sq.dataset import image_folder
from sq.errors import SqError

PLAIN = {"name": "mine", "splits": ["train", "val"], "classes": None, "size": None, "resized": False}


@pytest.fixture
def folder(tmp_path):
    for use, classes in (("train", ("ant", "bee", "cow")), ("val", ("bee", "cow"))):
        for own in classes:
            (tmp_path / use / own).mkdir(parents=True)
            for n in range(2):
                Image.new("RGB", (8, 6), (10 * n, 0, 0)).save(tmp_path / use / own / f"{n}.JPEG")
    return tmp_path


def load(folder, **knobs):
    return image_folder.load(root=str(folder), skip_corrupt=False, **{**PLAIN, **knobs})


def test_classes_are_those_of_the_training_split(folder):
    data = load(folder)
    assert (data.classes, data.name) == (3, "mine")
    assert data.train.y.tolist() == [0, 0, 1, 1, 2, 2]
    assert data.test.y.tolist() == [1, 1, 2, 2], "not numbered by the folders found there"
    assert data.test.ids == ["val/bee/0.JPEG", "val/bee/1.JPEG", "val/cow/0.JPEG", "val/cow/1.JPEG"]
    assert data.test.read(1).size == (8, 6)


def test_classes_are_those_of_a_list(folder):
    (folder / "classes.txt").write_text("cow\ndog\nbee\nant\n")
    data = load(folder, classes="classes.txt")
    assert data.classes == 4
    assert data.test.y.tolist() == [2, 2, 0, 0]


def test_what_is_resized_is_the_evaluation_split(folder):
    data = load(folder, resized=True)
    assert (data.train.resized, data.test.resized) == (False, True)


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_images_become_rgb(folder, mode):
    Image.new("RGB", (8, 6), (9, 9, 9)).convert(mode).save(folder / "val" / "bee" / "0.JPEG")
    assert load(folder).test.read(0).mode == "RGB"


def test_other_files_are_no_images(folder):
    (folder / "val" / "bee" / "notes.txt").write_text("x")
    assert len(load(folder).test.ids) == 4


def no_val(folder):
    (folder / "val").rename(folder / "validation")


def flat(folder):
    for file in (folder / "val").glob("*/*"):
        file.unlink()
    for own in (folder / "val").iterdir():
        own.rmdir()
    Image.new("RGB", (8, 6)).save(folder / "val" / "ILSVRC2012_val_00000001.JPEG")


def empty_class(folder):
    (folder / "val" / "ant").mkdir()


def foreign_class(folder):
    (folder / "val" / "bee").rename(folder / "val" / "wasp")


@pytest.mark.parametrize(
    ("spoil", "knobs", "says"),
    [
        (no_val, {}, r"no folder .*/val; .* holds train, validation; expected val/CLASS/\*\.jpeg in dataset\.root"),
        (flat, {}, r"val holds no class folders but ILSVRC2012_val_00000001\.JPEG; expected val/CLASS/"),
        (empty_class, {}, r"val: no images .* in 1 of 3 classes \(ant\)"),
        (
            foreign_class,
            {},
            r"val: 1 of 2 folders are no class of the training split \(wasp\)",
        ),
        (lambda folder: None, {"classes": "no.txt"}, r"dataset\.classes=no\.txt: no file .*no\.txt: one class a line"),
        (
            lambda folder: None,
            {"classes": "imagenet"},
            r"train: 3 of 3 folders are no class of imagenet \(ant, ",
        ),
        (lambda folder: None, {"size": 50000}, r"val holds 4 images, mine is evaluated on 50,000: copy it again"),
    ],
)
def test_folder_laid_out_otherwise(folder, spoil, knobs, says):
    spoil(folder)
    with pytest.raises(SqError, match=says) as caught:
        load(folder, **knobs)
    assert "\n" not in str(caught.value)


def test_list_that_names_a_class_twice(folder):
    (folder / "classes.txt").write_text("ant\nbee\ncow\nbee\n")
    with pytest.raises(SqError, match=r"classes\.txt names 4 classes, 3 different ones"):
        load(folder, classes="classes.txt")


def test_sample_of_imagenet(needs_data):
    data = build(compose("dataset=imagenet_sample")[0]["dataset"], "dataset")()
    assert (len(data.train.ids), len(data.test.ids), data.classes) == (1000, 1300, 1000)
    assert len(data.test.y.unique()) == 725
    assert data.train.y.tolist() == list(range(1000))
    names = (Path(os.environ["SQ_DATA"]) / "imagenet" / "classes.txt").read_text().split()
    assert all(
        names[label] == name.split("/")[1] for label, name in zip(data.test.y.tolist(), data.test.ids, strict=True)
    )
    assert data.test.read(0).size == (227, 227)
    assert not any(os.environ["SQ_DATA"] in name for name in data.test.ids)


def test_sample_is_not_taken_for_the_whole(needs_data):
    with pytest.raises(SqError, match=r"holds 1,300 images, imagenet is evaluated on 50,000.*dataset=imagenet_sample"):
        build(compose("dataset=imagenet")[0]["dataset"], "dataset")()
