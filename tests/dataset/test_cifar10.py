import hashlib
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from cli_helpers import run
from PIL import Image

from sq.dataset import cifar10 as module
from sq.dataset import loading
from sq.errors import SqError
from sq.model.transforms import Normalise

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
PLAIN = Normalise((32, 32), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


@pytest.fixture
def folder(tmp_path):
    """Two training images and a test image of each class, of random pixels."""
    random = np.random.default_rng(0)
    for use, numbers in (("train", (1, 2)), ("test", (3,))):
        for name in CLASSES:
            (tmp_path / use / name).mkdir(parents=True)
            for number in numbers:
                pixels = random.integers(0, 256, (32, 32, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / use / name / f"{number:04}.png")
    return tmp_path


def load(folder, *, skip_corrupt=False):
    return module.load(name="cifar10", root=str(folder), skip_corrupt=skip_corrupt)


def read(split):
    return loading.load(split, range(len(split.ids)), PLAIN, "images")


def test_images_labels_and_ids(folder):
    data = load(folder)
    assert data.classes == 10
    assert data.name == "cifar10_10", "not the whole test split"
    assert data.train.y.tolist() == [label for label in range(10) for _ in range(2)]
    assert data.train.ids[:3] == [
        f"cifar10/train/{n}.png" for n in ("airplane/0001", "airplane/0002", "automobile/0001")
    ]
    assert data.test.ids == [f"cifar10/test/{name}/0003.png" for name in CLASSES]
    for split, size in ((data.train, 20), (data.test, 10)):
        batch = read(split)
        assert batch.x.shape == (size, 3, 32, 32)
        assert batch.x.dtype == torch.float32
        for x, name in zip(batch.x, batch.ids, strict=True):
            stored = np.asarray(Image.open(folder / name.removeprefix("cifar10/")))
            assert np.array_equal((x * 255).round().byte().permute(1, 2, 0).numpy(), stored)


def test_palette_and_grey_images_are_colour_images_too(folder):
    plain = Image.new("RGB", (32, 32), (9, 9, 9))
    for image in (plain.quantize(4), plain.convert("L")):
        image.save(folder / "test" / "cat" / "0003.png")
        assert (read(load(folder).test).x[3] * 255).round().unique().tolist() == [9]


def no_split(folder):
    (folder / "test").rename(folder / "val")


def nine_classes(folder):
    for use in ("train", "test"):
        (folder / use / "ship").rename(folder / f"{use} ship")


def one_class_more(folder):
    (folder / "train" / "extra").mkdir()


def no_class(folder):
    for name in CLASSES:
        (folder / "train" / name).rename(folder / name)


def another_name(folder):
    (folder / "test" / "cat").rename(folder / "test" / "kitten")


def no_images(folder):
    (folder / "test" / "cat" / "0003.png").unlink()


def too_large(folder):
    Image.new("RGB", (33, 32)).save(folder / "test" / "cat" / "0003.png")


def sixteen_bit(folder):
    Image.fromarray(np.zeros((32, 32), np.uint16)).save(folder / "test" / "cat" / "0003.png")


def truncated(folder):
    file = folder / "test" / "cat" / "0003.png"
    file.write_bytes(file.read_bytes()[:500])


def a_page(folder):
    (folder / "test" / "cat" / "0003.png").write_text("<html>not found</html>")


def a_loop(folder):
    file = folder / "test" / "cat" / "0003.png"
    file.unlink()
    file.symlink_to(file)


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (
            no_split,
            r"no folder .*test; .* holds train, val; expected test/CLASS/\*\.png in dataset\.root",
        ),
        (nine_classes, r"train holds 9 class folders \(airplane, .*\), CIFAR-10 has 10"),
        (no_class, r"train holds no class folders but nothing; expected train/CLASS/\*\.png"),
        (another_name, r"train and test differ in cat, kitten"),
        (no_images, r"test: no images \(\.png\) in 1 of 10 classes \(cat\)"),
        (one_class_more, r"train: no images \(\.png\) in 1 of 11 classes \(extra\)"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_unusable_folder_is_named(folder, spoil, says):
    spoil(folder)
    with pytest.raises(SqError, match=says) as caught:
        load(folder)
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (too_large, r"it is 33x32 RGB, CIFAR-10 images are 32x32 RGB"),
        (sixteen_bit, r"it is 32x32 I"),
        (truncated, r"it is damaged \("),
        (a_page, r"it is a page of HTML"),
        (a_loop, r"it is a link to .*, which is not there"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_corrupt_image_is_named_or_left_out(folder, spoil, says):
    spoil(folder)
    with pytest.raises(
        SqError, match=rf"1 of 10 images cannot be read \(cifar10/test/cat/0003\.png: .*{says}"
    ):
        read(load(folder).test)
    assert read(load(folder, skip_corrupt=True).test).ids == [
        i for i in load(folder).test.ids if "cat" not in i
    ]


def test_folder_that_there_is_not(tmp_path, monkeypatch):
    monkeypatch.delenv("SQ_DATA", raising=False)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SqError, match=r"dataset\.root=cifar10: .*set SQ_DATA to the folder"):
        load("cifar10")
    with pytest.raises(SqError, match=r"dataset\.root=/nowhere: there is no such file or folder"):
        load("/nowhere")


# On the real images.


def test_real_splits(cifar10):
    assert len(cifar10.train.ids) == 4000
    assert len(cifar10.test.ids) == 1000
    assert {name.split("/")[2] for name in cifar10.train.ids} == set(CLASSES)
    assert not set(cifar10.train.ids) & set(cifar10.test.ids)
    assert cifar10.name == "cifar10_1000"


def test_no_image_is_in_both_splits(cifar10):
    train, test = (
        {x.numpy().tobytes() for x in read(split).x} for split in (cifar10.train, cifar10.test)
    )
    assert not train & test


def test_a_run_from_the_command_line(tmp_path, needs_data):
    data = Path(os.environ["SQ_DATA"]).resolve()
    words = (
        "model=resnet20",
        "dataset=cifar10",
        "quantizer=rtn",
        "calibration.images=100",
        "correction=batchnorm",
    )
    done = run(tmp_path, *words, SQ_DATA=str(data))
    assert done.returncode == 0, done.stderr
    (file,) = (tmp_path / "results" / "runs").glob("*.json")
    record = json.loads(file.read_text())
    weights = (data / "weights" / "cifar10_resnet20.pth").read_bytes()
    assert record["status"] == "done"
    assert record["checkpoint"] == hashlib.sha256(weights).hexdigest()
    assert record["calibration"]["images"] == 100
    assert len(record["layers"]) == 20
    assert record["results"]["drop"] < 3
    assert str(data) not in file.read_text(), "a path of this machine is in the record"
