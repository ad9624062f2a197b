import pytest
import torch

from sq.calibration import subset
from sq.errors import SqError


def draw(digits, images, seed=0):
    return subset.draw(None, digits, images=images, seed=seed)


@pytest.mark.parametrize("images", [1, 7, 10, 64, 512, 1001])
def test_classes_are_balanced(digits, images):
    counts = draw(digits, images).y.bincount(minlength=10)
    assert counts.sum() == images
    assert counts.max() - counts.min() <= 1


@pytest.mark.parametrize("images", [1, 100, 1201])
def test_images_are_distinct_and_keep_their_labels(digits, images):
    batch = draw(digits, images)
    assert len(set(batch.ids)) == len(batch.ids) == len(batch.x) == len(batch.y) == images
    place = {name: i for i, name in enumerate(digits.train.ids)}
    chosen = [place[name] for name in batch.ids]  # of the training split, every one
    assert torch.equal(batch.x, digits.train.x[chosen])
    assert torch.equal(batch.y, digits.train.y[chosen])


def test_the_seed_decides(digits):
    assert draw(digits, 40, 3).ids == draw(digits, 40, 3).ids
    assert draw(digits, 40, 3).ids != draw(digits, 40, 4).ids


def test_global_random_state_is_neither_used_nor_changed(digits):
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = draw(digits, 40).ids
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert draw(digits, 40).ids == first


def test_a_smaller_draw_is_the_start_of_a_larger_one(digits):
    assert draw(digits, 200).ids[:50] == draw(digits, 50).ids


@pytest.mark.parametrize("images", [0, -1, 1202])
def test_out_of_range(digits, images):
    with pytest.raises(SqError, match=rf"calibration\.images={images}\b.*1201"):
        draw(digits, images)
