import hashlib
import subprocess
import sys

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from sq.dataset import digits as module
from sq.errors import SqError


def test_sizes(digits):
    assert digits.classes == 10
    for split, size in ((digits.train, 1201), (digits.test, 596)):
        assert split.y.shape == (size,)
        assert len(split.ids) == size


def test_splits_are_disjoint_and_whole(digits):
    train, test = set(digits.train.ids), set(digits.test.ids)
    assert not train & test
    assert train | test == {f"digits/{i}" for i in range(1797)}


def test_split_is_stratified(digits):
    train, test = digits.train.y.bincount(), digits.test.y.bincount()
    assert torch.equal(test, (train + test) // 3)


def test_split_is_fixed(digits):
    # a changed split makes every stored result incomparable: this hash may change with a reason
    # only
    found = hashlib.sha256("\n".join(digits.test.ids).encode()).hexdigest()[:16]
    assert found == "24d71dcd045d4133"


def test_images_are_those_of_the_source(digits_train, digits_test):
    source = load_digits()
    for split in (digits_train, digits_test):
        assert split.x.shape == (len(split.ids), 1, 8, 8)
        assert split.x.dtype == torch.float32
        chosen = [int(name.removeprefix("digits/")) for name in split.ids]
        assert np.array_equal(
            split.x[:, 0].numpy(), source.images[chosen].astype("float32") / 8 - 1
        )
        assert np.array_equal(split.y.numpy(), source.target[chosen])
    assert digits_train.x.min() == -1
    assert digits_train.x.max() == 1


def test_every_second_image():
    halves = module.load(name="digits", every=2)
    assert abs(len(halves.train.ids) - len(halves.test.ids)) <= 10


@pytest.mark.parametrize("every", [1, 0, -3])
def test_nothing_left_to_train_on_is_refused(every):
    with pytest.raises(SqError, match=f"dataset.every={every}"):
        module.load(name="digits", every=every)


def test_source_that_keeps_its_file_elsewhere(digits, monkeypatch):
    monkeypatch.setattr(module, "FILE", "no/such.csv.gz")
    again = module.load(name="digits", every=3)
    for split, other in ((digits.train, again.train), (digits.test, again.test)):
        assert split.ids == other.ids
        assert torch.equal(split.y, other.y)
        assert np.array_equal(split.read.pixels, other.read.pixels)


def test_the_source_is_read_and_not_imported():
    code = "import sys; from sq.dataset import digits; digits.load(name='digits', every=3)"
    code += "; print('sklearn' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
