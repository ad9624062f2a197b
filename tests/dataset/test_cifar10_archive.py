"""CIFAR-10 as the python archive has it: pickled batches, of which nothing but arrays is read."""

import os
import pickle
import struct

import numpy as np
import pytest
import torch
from PIL import Image

from sq.dataset import cifar10, loading
from sq.errors import SqError
from sq.model.transforms import Normalise

NAMES = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]


def pickled(pixels, labels):
    return pickle.dumps({b"data": pixels, b"labels": labels, b"batch_label": b"x"}, protocol=2)


def by_python_2(pixels, labels):
    """Return a batch as the archive's was written, by Python 2, whose strings were bytes: opcode by opcode."""

    def text(own):
        return b"U" + bytes([len(own)]) + own

    raw = pixels.tobytes()
    empty = (
        b"cnumpy.core.multiarray\n_reconstruct\n"
        + b"cnumpy\nndarray\n"
        + b"K\0\x85"
        + text(b"b")
        + b"\x87R"
    )
    dtype = (
        b"cnumpy\ndtype\n"
        + text(b"u1")
        + b"K\0K\1\x87R"
        + b"(K\3"
        + text(b"|")
        + b"NNN"
        + 2 * b"J\xff\xff\xff\xff"
    )
    shape = b"".join(b"M" + struct.pack("<H", n) for n in pixels.shape) + b"\x86"
    array = (
        empty
        + b"(K\1"
        + shape
        + dtype
        + b"K\0tb"
        + b"\x89T"
        + struct.pack("<I", len(raw))
        + raw
        + b"tb"
    )
    numbers = b"](" + b"".join(b"K" + bytes([label]) for label in labels) + b"e"
    items = (
        text(b"batch_label"),
        text(b"training batch 1 of 5"),
        text(b"labels"),
        numbers,
        text(b"data"),
        array,
    )
    return b"\x80\2}(" + b"".join(items) + b"u."


@pytest.fixture
def archive(tmp_path):
    random = np.random.default_rng(0)
    made = {}
    for name in NAMES:
        pixels, labels = (
            random.integers(0, 256, (4, 3072), dtype=np.uint8),
            random.integers(0, 10, 4).tolist(),
        )
        (tmp_path / name).write_bytes(pickled(pixels, labels))
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
    # the third of the second batch: planes of red, green, blue, row by row
    image = np.asarray(data.train.read(6))
    assert np.array_equal(image.transpose(2, 0, 1).ravel(), made["data_batch_2"][0][2])
    assert data.test.read(0).mode == "RGB"
    assert not set(data.train.ids) & set(data.test.ids)


def test_batches_that_python_2_wrote(archive):
    folder, made = archive
    wanted = load(folder)
    for name, own in made.items():
        (folder / name).write_bytes(by_python_2(*own))
    found = load(folder)
    for split, same in ((found.train, wanted.train), (found.test, wanted.test)):
        assert (split.ids, split.y.tolist()) == (same.ids, same.y.tolist())
        assert np.array_equal(split.read.pixels, same.read.pixels)


def test_folders_and_archive_give_the_same_images(archive, tmp_path_factory):
    # airplane .. truck: an image's label in the archive is the place of its folder among the sorted
    # names
    names = (
        "airplane",
        "automobile",
        "bird",
        "cat",
        "deer",
        "dog",
        "frog",
        "horse",
        "ship",
        "truck",
    )
    folder, _ = archive
    pixels = np.random.default_rng(1).integers(0, 256, (10, 3072), dtype=np.uint8)
    pngs = tmp_path_factory.mktemp("pngs")
    for use in ("train", "test"):
        for label, name in enumerate(names):
            (pngs / use / name).mkdir(parents=True)
            Image.fromarray(pixels[label].reshape(3, 32, 32).transpose(1, 2, 0)).save(
                pngs / use / name / "0.png"
            )
    order = [3, 9, 0, 1, 8, 2, 7, 4, 6, 5]
    for name in NAMES:
        (folder / name).write_bytes(pickled(pixels[order], order))
    prepare = Normalise((32, 32), (0.5,) * 3, (0.25,) * 3)
    stored, listed = (
        loading.load(load(root).test, range(10), prepare, "x") for root in (folder, pngs)
    )
    assert stored.y.tolist() == order
    assert listed.y.tolist() == list(range(10))
    assert torch.equal(stored.x, listed.x[order])


class Trap:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_pickle_that_wants_code_is_refused_and_not_run(archive):
    folder, _ = archive
    (folder / "data_batch_3").write_bytes(
        pickle.dumps({b"data": Trap(folder / "sprung")}, protocol=2)
    )
    with pytest.raises(SqError, match=r"wants posix\.mkdir, which could run foreign code"):
        load(folder)
    assert not (folder / "sprung").exists()


def missing(file):
    file.unlink()


def cut(file):
    file.write_bytes(file.read_bytes()[:200])


def without_labels(file):
    file.write_bytes(pickle.dumps({b"data": np.zeros((4, 3072), np.uint8)}, protocol=2))


def label_too_large(file):
    file.write_bytes(pickled(np.zeros((4, 3072), np.uint8), [0, 1, 2, 10]))


def label_too_few(file):
    file.write_bytes(pickled(np.zeros((4, 3072), np.uint8), [0, 1, 2]))


def in_floats(file):
    file.write_bytes(
        pickle.dumps({b"data": np.zeros((4, 3072)), b"labels": [0, 1, 2, 3]}, protocol=2)
    )


def of_another_size(file):
    file.write_bytes(pickled(np.zeros((4, 3073), np.uint8), [0, 1, 2, 3]))


def without_images(file):
    file.write_bytes(by_python_2(np.zeros((0, 3072), np.uint8), []))


def no_dictionary(file):
    file.write_bytes(pickle.dumps([1, 2], protocol=2))


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (missing, r"no file .*data_batch_4: a CIFAR-10 archive has data_batch_1, .*test_batch"),
        (cut, r"data_batch_4 is not a whole batch of CIFAR-10"),
        (without_labels, r"data_batch_4 holds no images and labels"),
        (
            label_too_large,
            r"data_batch_4 holds no images and labels \(4 images of uint8, 4 labels, not all of them 0 to 9",
        ),
        (label_too_few, r"data_batch_4 .*\(4 images of uint8, 3 labels"),
        (in_floats, r"data_batch_4 .*\(4 images of float64, 4 labels"),
        (of_another_size, r"data_batch_4 holds no images and labels \(cannot reshape"),
        (without_images, r"data_batch_4 holds no images and labels"),
        (no_dictionary, r"data_batch_4 holds no images and labels"),
    ],
)
def test_damaged_archive(archive, spoil, says):
    folder, _ = archive
    spoil(folder / "data_batch_4")
    with pytest.raises(SqError, match=says) as caught:
        load(folder)
    assert "\n" not in str(caught.value)
