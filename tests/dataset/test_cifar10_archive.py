"""CIFAR-10 as the python archive has it: pickled batches, of which nothing but arrays is read."""

import os
import pickle

import numpy as np
import pytest

from sq.dataset import cifar10
from sq.errors import SqError

NAMES = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]


@pytest.fixture
def archive(tmp_path):
    random = np.random.default_rng(0)
    made = {}
    for name in NAMES:
        pixels, labels = random.integers(0, 256, (4, 3072), dtype=np.uint8), random.integers(0, 10, 4).tolist()
        (tmp_path / name).write_bytes(
            pickle.dumps({b"data": pixels, b"labels": labels, b"batch_label": b"x"}, protocol=2)
        )
        made[name] = pixels, labels
    return tmp_path, made


def load(folder):
    return cifar10.load(name="cifar10", root=str(folder), skip_corrupt=False)


def test_images_and_labels(archive):
    folder, made = archive
    data = load(folder)
    assert (len(data.train.ids), len(data.test.ids), data.classes) == (20, 4, 10)
    assert data.name == "cifar10_4"
    assert data.train.y.tolist() == [label for name in NAMES[:5] for label in made[name][1]]
    image = np.asarray(data.train.read(6))  # the third of the second batch: planes of red, green, blue, row by row
    assert np.array_equal(image.transpose(2, 0, 1).ravel(), made["data_batch_2"][0][2])
    assert data.test.read(0).mode == "RGB"
    assert not set(data.train.ids) & set(data.test.ids)


class Trap:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_pickle_that_wants_code_is_refused_and_not_run(archive):
    folder, _ = archive
    (folder / "data_batch_3").write_bytes(pickle.dumps({b"data": Trap(folder / "sprung")}, protocol=2))
    with pytest.raises(SqError, match=r"wants posix\.mkdir, which could run foreign code"):
        load(folder)
    assert not (folder / "sprung").exists()


def missing(file):
    file.unlink()


def cut(file):
    file.write_bytes(file.read_bytes()[:200])


def without_labels(file):
    file.write_bytes(pickle.dumps({b"data": np.zeros((4, 3072), np.uint8)}, protocol=2))


def label_too_many(file):
    file.write_bytes(pickle.dumps({b"data": np.zeros((4, 3072), np.uint8), b"labels": [0, 1, 2, 10]}, protocol=2))


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (missing, r"no file .*data_batch_4: a CIFAR-10 archive has data_batch_1, .*test_batch"),
        (cut, r"data_batch_4 is not a whole batch of CIFAR-10"),
        (without_labels, r"data_batch_4 holds no images and labels"),
        (label_too_many, r"train has 20 images and 20 labels, not all in 0 to 9"),
    ],
)
def test_damaged_archive(archive, spoil, says):
    folder, _ = archive
    spoil(folder / "data_batch_4")
    with pytest.raises(SqError, match=says) as caught:
        load(folder)
    assert "\n" not in str(caught.value)
