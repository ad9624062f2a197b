"""Images in class folders: which class an image is of, and what is said of folders laid out otherwise."""

import os
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import torchvision
from cli_helpers import compose
from PIL import Image

from sq.config.instantiate import build
from sq.dataset import image_folder, loading
from sq.errors import SqError
from sq.model.transforms import Normalise

PLAIN = {
    "name": "mine",
    "splits": ["train", "val"],
    "classes": None,
    "size": None,
    "resized": False,
    "skip_corrupt": False,
}


@pytest.fixture
def folder(tmp_path):
    for use, classes in (("train", ("ant", "bee", "cow")), ("val", ("bee", "cow"))):
        for own in classes:
            (tmp_path / use / own).mkdir(parents=True)
            for n in range(2):
                Image.new("RGB", (8, 6), (10 * n, 0, 0)).save(tmp_path / use / own / f"{n}.JPEG")
    return tmp_path


def load(folder, **knobs):
    return image_folder.load(root=str(folder), **{**PLAIN, **knobs})


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


def test_name_of_a_class_may_hold_spaces(folder):
    (folder / "train" / "ant").rename(folder / "train" / "fire ant")
    (folder / "classes.txt").write_text("cow\n\n bee \r\nfire ant\n")
    data = load(folder, classes="classes.txt")
    assert data.classes == 3
    assert data.train.y.tolist() == [1, 1, 0, 0, 2, 2]


def test_what_is_resized_is_the_evaluation_split(folder):
    data = load(folder, resized=True)
    assert (data.train.resized, data.test.resized) == (False, True)


@pytest.mark.parametrize(
    ("mode", "suffix"),
    [("L", "JPEG"), ("CMYK", "JPEG"), ("P", "png"), ("LA", "png"), ("RGBA", "webp"), ("1", "png")],
)
def test_images_become_rgb(folder, mode, suffix):
    (folder / "val" / "bee" / "0.JPEG").unlink()
    Image.new("RGB", (8, 6), (255, 255, 255)).convert(mode).save(
        folder / "val" / "bee" / f"0.{suffix}"
    )
    data = load(folder)
    assert data.test.ids[0] == f"val/bee/0.{suffix}"
    image = data.test.read(0)
    assert (image.mode, image.size) == ("RGB", (8, 6))
    assert np.asarray(image).min() >= 254, "white stays white"


@pytest.mark.parametrize(
    "pixels", [np.full((6, 8), 40000, np.uint16), np.full((6, 8), 0.5, np.float32)]
)
def test_image_of_more_than_8_bits_is_named(folder, pixels):
    (folder / "val" / "bee" / "1.JPEG").unlink()
    Image.fromarray(pixels).save(folder / "val" / "bee" / "1.tiff")
    with pytest.raises(
        SqError, match=r"1 of 4 images .*\(val/bee/1\.tiff: it is 8x6 [IF]\S*, more than 8 bits"
    ):
        loading.load(load(folder).test, range(4), Normalise((6, 8), (0.0,) * 3, (1.0,) * 3), "x")


def test_truncated_jpeg_is_named_or_left_out(folder):
    file = folder / "val" / "cow" / "0.JPEG"
    file.write_bytes(file.read_bytes()[:-40])
    prepare = Normalise((6, 8), (0.0,) * 3, (1.0,) * 3)
    with pytest.raises(
        SqError,
        match=r"1 of 4 images cannot be read \(val/cow/0\.JPEG: it is damaged \((?i:.*truncated)",
    ):
        loading.load(load(folder).test, range(4), prepare, "x")
    batch = loading.load(load(folder, skip_corrupt=True).test, range(4), prepare, "x")
    assert batch.ids == ["val/bee/0.JPEG", "val/bee/1.JPEG", "val/cow/1.JPEG"]
    assert batch.y.tolist() == [1, 1, 2]


def test_ids_are_the_same_wherever_the_folder_lies(folder, monkeypatch):
    absolute = load(folder)

    def same(root):
        data = load(root)
        assert data.test.read(0).size == (8, 6)
        return data.train.ids + data.test.ids == absolute.train.ids + absolute.test.ids

    monkeypatch.chdir(folder.parent)
    assert same(folder.name)
    monkeypatch.setenv("SQ_DATA", str(folder.parent))
    monkeypatch.chdir("/")
    assert same(folder.name)
    assert not any(str(folder.parent.name) in name for name in absolute.train.ids)
    assert len({*absolute.train.ids, *absolute.test.ids}) == 10


def test_other_files_are_no_images(folder):
    (folder / "val" / "bee" / "notes.txt").write_text("x")
    assert len(load(folder).test.ids) == 4


def test_images_in_deeper_folders_come_as_torchvision_has_them(folder):
    for own in ("b/1.png", "a/z.png", "a/A.PNG", "a/b/c.png"):
        (folder / "val" / "bee" / own).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 6)).save(folder / "val" / "bee" / own)
    (folder / "val" / "bee" / "a" / "up").symlink_to(folder / "val" / "bee")  # leads round
    data = load(folder)
    # torchvision would follow it until the system stops it
    (folder / "val" / "bee" / "a" / "up").unlink()
    theirs = torchvision.datasets.ImageFolder(str(folder / "val")).imgs
    assert data.test.ids == [Path(path).relative_to(folder).as_posix() for path, _ in theirs]
    assert data.test.y.tolist() == [1 + label for _, label in theirs], "val has no ants"
    assert data.test.ids[:3] == ["val/bee/0.JPEG", "val/bee/1.JPEG", "val/bee/a/A.PNG"]


def test_what_systems_leave_behind_is_no_image_and_no_class(folder, capsys):
    for own in ("._0.JPEG", ".DS_Store", "@eaDir/0.JPEG", ".ipynb_checkpoints/0.JPEG"):
        file = folder / "val" / "bee" / own
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(b"x")
    for own in ("__MACOSX", ".ipynb_checkpoints"):
        (folder / "train" / own).mkdir()
        (folder / "train" / own / "._0.JPEG").write_bytes(b"x")
    data = load(folder)
    assert data.classes == 3
    assert data.test.ids == ["val/bee/0.JPEG", "val/bee/1.JPEG", "val/cow/0.JPEG", "val/cow/1.JPEG"]
    assert capsys.readouterr().err == ""


def test_files_that_are_left_out_are_counted(folder, capsys):
    for name in ("a.heic", "b.gif", "c.gif", "notes"):
        (folder / "val" / "bee" / name).write_bytes(b"x")
    assert len(load(folder).test.ids) == 4
    said = capsys.readouterr().err.splitlines()
    assert said == [
        f"{folder / 'val'}: 4 files left out, no images by their names (.gif, .heic, notes)"
    ]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_class_list_in_the_encodings_people_use(folder, encoding):
    (folder / "train" / "ant").rename(
        folder / "train" / unicodedata.normalize("NFD", "fourmi ailée")
    )
    (folder / "classes.txt").write_bytes("fourmi ailée\r\ncow\r\nbee\r\n".encode(encoding))
    data = load(folder, classes="classes.txt")
    assert data.class_names == ("fourmi ailée", "cow", "bee")
    assert data.test.y.tolist() == [2, 2, 1, 1]


def test_class_list_in_latin_1_is_named(folder):
    (folder / "classes.txt").write_bytes("cow\nfourmi ailée\n".encode("latin-1"))
    with pytest.raises(
        SqError, match=r"classes\.txt:2: byte 0xe9 is not UTF-8: save the file as UTF-8"
    ) as caught:
        load(folder, classes="classes.txt")
    assert "\n" not in str(caught.value)


def no_root(folder):
    for file in (*folder.glob("*/*/*"), *folder.glob("*/*"), *folder.glob("*")):
        file.unlink() if file.is_file() else file.rmdir()


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
        (
            no_root,
            {},
            r"no folder .*/train; .* holds nothing; expected train/CLASS/\*\.jpeg in dataset\.root",
        ),
        (
            no_val,
            {},
            r"no folder .*/val; .* holds train, validation; expected val/CLASS/\*\.jpeg in dataset\.root",
        ),
        (
            flat,
            {},
            r"val holds no class folders but ILSVRC2012_val_00000001\.JPEG; expected val/CLASS/",
        ),
        (empty_class, {}, r"val: no images .* in 1 of 3 classes \(ant\)"),
        (
            foreign_class,
            {},
            r"val: 1 of 2 folders are no class of the training split \(wasp\)",
        ),
        (
            lambda folder: None,
            {"classes": "no.txt"},
            r"dataset\.classes=no\.txt: no file .*no\.txt: one class a line",
        ),
        (
            lambda folder: None,
            {"classes": "imagenet"},
            r"train: 3 of 3 folders are no class of imagenet \(ant, ",
        ),
        (
            lambda folder: None,
            {"size": 50000},
            r"val holds 4 images, mine is evaluated on 50,000: copy it again",
        ),
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
        names[label] == name.split("/")[1]
        for label, name in zip(data.test.y.tolist(), data.test.ids, strict=True)
    )
    assert data.test.read(0).size == (227, 227)
    assert not any(os.environ["SQ_DATA"] in name for name in data.test.ids)


def test_sample_is_not_taken_for_the_whole(needs_data):
    with pytest.raises(
        SqError,
        match=r"holds 1,300 images, imagenet is evaluated on 50,000.*dataset=imagenet_sample",
    ):
        build(compose("dataset=imagenet")[0]["dataset"], "dataset")()
