import hashlib
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from cli_helpers import compose, run
from PIL import Image

from sq.build import build
from sq.dataset import cifar10 as module
from sq.errors import SqError

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
PLAIN = {"mean": [0.0, 0.0, 0.0], "std": [1.0, 1.0, 1.0]}


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


def load(folder):
    return module.load(root=str(folder), **PLAIN)


def test_images_labels_and_ids(folder):
    data = load(folder)
    assert data.classes == 10
    assert data.train.x.shape == (20, 3, 32, 32)
    assert data.test.x.shape == (10, 3, 32, 32)
    assert data.train.x.dtype == torch.float32
    assert data.train.x.is_contiguous()
    assert data.train.y.tolist() == [label for label in range(10) for _ in range(2)]
    assert data.train.ids[:3] == [
        f"cifar10/train/{n}.png" for n in ("airplane/0001", "airplane/0002", "automobile/0001")
    ]
    assert data.test.ids == [f"cifar10/test/{name}/0003.png" for name in CLASSES]
    for split in (data.train, data.test):
        for x, name in zip(split.x, split.ids, strict=True):
            stored = np.asarray(Image.open(folder / name.removeprefix("cifar10/")))
            assert np.array_equal((x * 255).round().byte().permute(1, 2, 0).numpy(), stored)


def test_values_are_normalised_by_channel(folder):
    mean, std = [0.1, 0.2, 0.3], [0.5, 2, 4]
    plain, scaled = load(folder), module.load(root=str(folder), mean=mean, std=std)
    for channel in range(3):
        wanted = (plain.test.x[:, channel] - mean[channel]) / std[channel]
        torch.testing.assert_close(scaled.test.x[:, channel], wanted)


def test_palette_and_grey_images_are_colour_images_too(folder):
    plain = Image.new("RGB", (32, 32), (9, 9, 9))
    for image in (plain.quantize(4), plain.convert("L")):
        image.save(folder / "test" / "cat" / "0003.png")
        assert (load(folder).test.x[3] * 255).round().unique().tolist() == [9]


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
        (no_split, r"no folder .*test: dataset\.root must hold train/CLASS/\*\.png"),
        (nine_classes, r"train holds 9 class folders \(airplane, .*\), CIFAR-10 has 10"),
        (one_class_more, r"train holds 11 class folders \(.*extra.*\), CIFAR-10 has 10"),
        (no_class, r"train holds 0 class folders \(none\)"),
        (another_name, r"train and test differ in cat, kitten"),
        (no_images, r"test: no images \(\*\.png\) in cat"),
        (too_large, r"test/cat/0003\.png is 33x32 RGB, CIFAR-10 images are 32x32 RGB"),
        (sixteen_bit, r"test/cat/0003\.png is 32x32 I"),
        (truncated, r"test/cat/0003\.png is not a whole image"),
        (a_page, r"test/cat/0003\.png is not a whole image"),
        (a_loop, r"test/cat/0003\.png is not a whole image"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_unusable_folder_is_named(folder, spoil, says):
    spoil(folder)
    with pytest.raises(SqError, match=says) as caught:
        load(folder)
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_folder_that_there_is_not(tmp_path, monkeypatch):
    monkeypatch.delenv("SQ_DATA", raising=False)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SqError, match=r"dataset\.root=cifar10: .*set SQ_DATA to the folder"):
        load("cifar10")
    with pytest.raises(SqError, match=r"dataset\.root=/nowhere: there is no such file or folder"):
        load("/nowhere")


@pytest.mark.parametrize(
    "knobs", [{"std": [0.2, 0.0, 0.2]}, {"std": [0.2]}, {"mean": [0.1] * 4}, {"mean": 0.5}, {"mean": ["a"] * 3}]
)
def test_normalisation_that_makes_no_sense(knobs):
    part = compose("dataset=cifar10")[0]["dataset"] | knobs
    with pytest.raises(SqError, match=rf"dataset\.{next(iter(knobs))}="):
        build(part, "dataset")


# On the real images.


def test_real_splits(cifar10):
    assert len(cifar10.train.ids) == 4000
    assert len(cifar10.test.ids) == 1000
    assert {name.split("/")[2] for name in cifar10.train.ids} == set(CLASSES)
    assert not set(cifar10.train.ids) & set(cifar10.test.ids)
    # Images are near what the constants normalise to, though CIFAR's own statistics differ from ImageNet's.
    assert cifar10.train.x.mean((0, 2, 3)).abs().max() < 0.3
    assert (cifar10.train.x.std((0, 2, 3)) - 1).abs().max() < 0.2


def test_no_image_is_in_both_splits(cifar10):
    train, test = ({x.numpy().tobytes() for x in split.x} for split in (cifar10.train, cifar10.test))
    assert not train & test


def test_a_run_from_the_command_line(tmp_path, needs_data):
    data = Path(os.environ["SQ_DATA"]).resolve()
    words = ("model=resnet20", "dataset=cifar10", "quantizer=rtn", "calibration.images=100", "correction=batchnorm")
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
