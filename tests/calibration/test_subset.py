import pytest
import torch
from PIL import Image

from sq.calibration import subset
from sq.errors import SqError
from sq.types.images import Dataset, Images, Objects
from sq.types.problem import Model


@pytest.fixture
def draw(digits, resnet):
    def drawn(images, seed=0):
        return subset.draw(resnet, digits, images=images, seed=seed, inputs="quantized")

    return drawn


@pytest.mark.parametrize("images", [1, 7, 10, 64, 512, 1001])
def test_classes_are_balanced(draw, images):
    counts = draw(images).y.bincount(minlength=10)
    assert counts.sum() == images
    assert counts.max() - counts.min() <= 1


@pytest.mark.parametrize("images", [1, 100, 1201])
def test_images_are_distinct_and_keep_their_labels(draw, digits_train, images):
    batch = draw(images)
    assert len(set(batch.ids)) == len(batch.ids) == len(batch.x) == len(batch.y) == images
    place = {name: i for i, name in enumerate(digits_train.ids)}
    chosen = [place[name] for name in batch.ids]  # of the training split, every one
    assert torch.equal(batch.x, digits_train.x[chosen])
    assert torch.equal(batch.y, digits_train.y[chosen])


def test_the_seed_decides(draw):
    assert draw(40, 3).ids == draw(40, 3).ids
    assert draw(40, 3).ids != draw(40, 4).ids


def test_global_random_state_is_neither_used_nor_changed(draw):
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = draw(40).ids
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert draw(40).ids == first


def test_a_smaller_draw_is_the_start_of_a_larger_one(draw):
    assert draw(200).ids[:50] == draw(50).ids


@pytest.mark.parametrize("images", [0, -1, 1202])
def test_out_of_range(draw, images):
    with pytest.raises(SqError, match=rf"calibration\.images={images}\b.*1201"):
        draw(images)


def test_how_inputs_are_seen_is_handed_on(draw):
    batch = draw(8)
    assert (batch.inputs, batch.left_out) == ("quantized", ())


def objects(*sizes):
    boxes = torch.tensor([[0.0, 0.0, side, side] for side, _ in sizes]).reshape(-1, 4)
    classes = torch.tensor([own for _, own in sizes], dtype=torch.long)
    return Objects(boxes, classes, torch.zeros(len(sizes), dtype=torch.bool), (32, 32))


def test_images_with_objects_are_balanced_over_their_largest():
    y = [
        objects((3, 0), (9, 1)),
        objects((5, 1)),
        objects((8, 1), (2, 0)),
        objects((4, 0)),
        objects(),
    ]
    split = Images([f"i/{n}" for n in range(5)], y, lambda place: Image.new("L", (2, 2), place))
    dataset = Dataset(split, split, 2, "made up")
    model = Model(
        None,
        [],
        (1, 2, 2),
        "",
        lambda image, resized: torch.tensor(image.getpixel((0, 0))).view(1, 1, 1),
    )
    for seed in range(5):
        batch = subset.draw(model, dataset, images=3, seed=seed, inputs="reference")
        assert {"i/3", "i/4"} <= set(batch.ids), (
            "the only image of class 0 and the only one without objects"
        )
        assert all(batch.y[n] is y[int(name[2:])] for n, name in enumerate(batch.ids))
        assert batch.x.flatten().tolist() == [int(name[2:]) for name in batch.ids]
