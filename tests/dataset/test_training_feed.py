"""Training images: from memory or read anew, in an order that any step can be the first of."""

import math
from dataclasses import replace

import pytest
import torch
from cli_helpers import EXPERIMENTS
from hypothesis import given as each
from hypothesis import strategies as st
from learned_problems import problem_of
from PIL import Image

from sq.config.instantiate import build
from sq.dataset import training_feed
from sq.errors import SqError
from sq.model.transforms import Normalise
from sq.runs import status
from sq.runtime import memory
from sq.types.images import Images

SIZE = (6, 8)


def image(place):
    """An image whose red and green grow to the right and downwards, and whose blue is its place."""
    columns, rows = torch.meshgrid(torch.arange(40), torch.arange(30), indexing="xy")
    pixels = torch.stack([columns * 6, rows * 8, torch.full_like(rows, place)], 2).to(torch.uint8)
    return Image.fromarray(pixels.numpy())


def split(count=10, **more):
    return Images([str(i) for i in range(count)], torch.arange(count) % 3, image, **more)


def stream(count=10, crop=(0.2, 0.5), seed=0):
    prepare = Normalise(SIZE, (0.0,) * 3, (1 / 255,) * 3)
    return training_feed.StreamFeed(
        split(count),
        range(count),
        prepare,
        size=SIZE,
        crop=crop,
        seed=seed,
        device=torch.device("cpu"),
    )


def kept(count=10, seed=0):
    return training_feed.MemoryFeed(
        torch.arange(count).view(-1, 1, 1, 1).float(), torch.arange(count) % 3, seed
    )


@pytest.mark.parametrize("make", [stream, kept])
def test_any_step_can_be_the_first(make):
    whole = list(make().steps(4, 0, 5))
    assert len(whole) == 5
    for first in range(5):
        rest = list(make().steps(4, first, 5))
        assert len(rest) == 5 - first
        for (step, x, y), (same_step, same_x, same_y) in zip(whole[first:], rest, strict=True):
            assert step == same_step
            assert torch.equal(x, same_x)
            assert torch.equal(y, same_y)


@pytest.mark.parametrize("make", [stream, kept])
def test_an_epoch_has_each_image_once_with_its_label(make):
    epochs = [list(make().steps(5, first, first + 2)) for first in (0, 2)]
    places = [
        [int(v) for _, x, _ in steps for v in x[:, -1].flatten(1).median(1).values.round()]
        for steps in epochs
    ]
    assert sorted(places[0]) == sorted(places[1]) == list(range(10))
    assert places[0] != places[1], "each epoch has its own order"
    for steps, seen in zip(epochs, places, strict=True):
        assert torch.cat([y for _, _, y in steps]).tolist() == [place % 3 for place in seen]
    assert places[0] != [
        int(v)
        for _, x, _ in make(seed=1).steps(5, 0, 2)
        for v in x[:, -1].flatten(1).median(1).values
    ]


def test_parts_are_drawn_anew_each_epoch_at_the_size_of_the_network():
    first, second = (
        torch.cat([x for _, x, _ in stream(4).steps(4, epoch, epoch + 1)]) for epoch in (0, 1)
    )
    assert first.shape == (4, 3, *SIZE)
    spans = first[:, 0].amax((1, 2)) - first[:, 0].amin((1, 2))  # of columns, 6 of red apart
    assert (spans > 0).all()
    assert (spans < 6 * 40 * 0.9).all(), "a part, not the whole"
    assert not torch.equal(first.sort(0).values, second.sort(0).values)


@each(
    st.integers(2, 400),
    st.integers(2, 400),
    st.floats(0.05, 1),
    st.floats(0.05, 1),
    st.integers(0, 2**31),
)
def test_a_part_lies_within_the_image(width, height, a, b, seed):
    crop = (min(a, b), max(a, b))
    left, top, right, bottom = training_feed.random_crop(
        width, height, crop, torch.Generator().manual_seed(seed)
    )
    assert 0 <= left < right <= width
    assert 0 <= top < bottom <= height


def test_shares_and_shapes_of_parts_are_those_asked_for():
    draw = torch.Generator().manual_seed(0)
    boxes = torch.tensor(
        [training_feed.random_crop(400, 400, (0.1, 0.4), draw) for _ in range(2000)]
    ).double()
    w, h = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    shares, shapes = w * h / 400**2, (w / h).log()
    assert (shares.min() > 0.098, shares.max() < 0.402) == (True, True)
    assert float(shares.mean()) == pytest.approx(0.25, abs=0.01)
    assert float(shapes.abs().max()) < math.log(4 / 3) + 0.02
    assert float(shapes.mean()) == pytest.approx(0, abs=0.02)
    assert float(((boxes[:, 0] + boxes[:, 2]) / 2).mean()) == pytest.approx(200, abs=6)


def test_where_no_part_fits_the_middle_is_taken():
    assert training_feed.random_crop(1000, 10, (1.0, 1.0), torch.Generator().manual_seed(0)) == (
        495,
        0,
        505,
        10,
    )


def test_images_that_cannot_be_read_are_named_or_left_out():
    def broken(place):
        if place == 3:
            raise OSError("truncated")
        return image(place)

    own = stream()
    own.split = replace(own.split, read=broken)
    with pytest.raises(SqError, match=r"1 of 10 images cannot be read \(3: OSError: truncated\)"):
        list(own.steps(5, 0, 2))
    own.split = replace(own.split, skip_corrupt=True)
    assert sorted(len(x) for _, x, _ in own.steps(5, 0, 2)) == [4, 5]
    whole = [int(step) for step, _, _ in stream().steps(1, 0, 10)]
    gone = training_feed.order(10, 0, 0).tolist().index(3)
    assert [step for step, _, _ in own.steps(1, 0, 10)] == [step for step in whole if step != gone]


def test_an_image_that_cannot_be_read_stops_training_there():
    read = []

    def broken(place):
        read.append(place)
        raise OSError("truncated")

    own = stream()
    own.split = replace(own.split, read=broken)
    with pytest.raises(SqError, match="1 of 10 images cannot be read"):
        next(iter(own.steps(1, 0, 10)))
    assert len(read) == 1


class Problem:
    """As much of a problem as is asked for."""

    def __init__(self, train):
        self.train = train
        self.batch = type("", (), {"x": torch.zeros(1, 3, *SIZE)})
        self.model = type(
            "", (), {"prepare": staticmethod(Normalise(SIZE, (0.0,) * 3, (1.0,) * 3))}
        )


def test_images_are_kept_unless_parts_are_asked_for():
    exact = replace(split(), read=lambda place: image(place).resize(SIZE[::-1]))
    assert isinstance(training_feed.choose(Problem(exact), None, None, 0), training_feed.MemoryFeed)
    assert isinstance(
        training_feed.choose(Problem(split()), None, [0.1, 1.0], 0), training_feed.StreamFeed
    )
    some, same, other = (
        training_feed.choose(Problem(split()), 4, [0.1, 1.0], seed).chosen for seed in (0, 0, 1)
    )
    assert len(some) == 4
    assert some == same
    assert some != other


@pytest.mark.parametrize(
    ("train", "crop", "free", "message"),
    [
        (None, None, 2**40, "there are no training images: choose a dataset with a training split"),
        (
            replace(split(), y=torch.full((10,), -1)),
            None,
            2**40,
            "training takes images with class labels",
        ),
        (
            split(),
            [0.5, 0.1],
            2**40,
            r"quantizer\.train\.crop=\[0\.5, 0\.1\]: the least share .* first",
        ),
        (
            split(),
            None,
            4 * 3 * 48 * 10,
            r"10 training images take .*crop=\[0\.08,1\.0\].*quantizer\.images=5 or less",
        ),
    ],
)
def test_bad_input_is_one_line(train, crop, free, message, monkeypatch):
    monkeypatch.setattr(memory, "available", lambda device: free)
    with pytest.raises(SqError, match=message) as caught:
        training_feed.choose(Problem(train), None, crop, 0)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.one_arithmetic(
    "processes read images, and a network is trained: steps of it are tested alone"
)
@pytest.mark.parametrize("stem", ["qat_imagenet", "qat_imagenet_post"])
def test_recipes_of_imagenet_train_on_sample_images(stem, tmp_path, needs_data):
    swapped = ["model=efficientnet_lite0", "dataset=imagenet_sample"]
    for job in status.jobs_of(stem, tmp_path, EXPERIMENTS, swapped):
        job.config["quantizer"] |= {"images": 12}
        job.config["quantizer"]["train"] |= {"epochs": 1, "batch": 4}
        quantizer, fit = (
            build(job.config["quantizer"], "quantizer"),
            build(job.config["grid"], "grid"),
        )
        model, data = (build(job.config[family], family)() for family in ("model", "dataset"))
        given = problem_of(model, torch.randn(4, 3, 224, 224), 4, 4, fit=fit)
        made = quantizer(replace(given, train=replace(data.train, workers=0)))
        assert made.report["steps"] == 3
        assert made.report["plain_cpu_seconds_per_step"] > 0
        assert torch.isfinite(made.net(given.batch.x)).all()
        assert math.isfinite(made.report["curves"][0]["loss"])
