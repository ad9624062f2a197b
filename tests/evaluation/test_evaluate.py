"""A network on the evaluation images: what is left out, and what a metric is given."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from sq.errors import SqError
from sq.evaluation import evaluate
from sq.types.images import Dataset, Images, Objects
from sq.types.problem import Model


def prepare(image, resized):
    return torch.from_numpy(np.asarray(image, np.float32)[None] + 1000 * resized)


def split(count=6, broken=(), **more):
    def read(place):
        if place in broken:
            raise OSError("truncated")
        return Image.new("L", (2, 2), place)

    return Images([f"i/{n}" for n in range(count)], torch.arange(count), read, **more)


def over(images, batch_size=2, metric=lambda model, seen: list(seen), shape=(1, 2, 2)):
    model = Model(nn.Flatten(), [], shape, "", prepare)
    return evaluate.NetworkEvaluator(model, metric, images, batch_size, torch.device("cpu"))


def test_images_that_cannot_be_read_are_left_out_and_listed():
    measuring = over(split(broken=(1, 4, 5), skip_corrupt=True))
    # the second network is measured on the same images, and the list does not grow
    for _ in range(2):
        seen = measuring.measure(nn.Flatten())
        assert [own.y.tolist() for _, own in seen] == [[0], [2, 3]]
        assert torch.cat([outputs for outputs, _ in seen])[:, 0].tolist() == [0, 2, 3]
        assert measuring.left_out == ["i/1", "i/4", "i/5"]


def test_images_that_cannot_be_read_stop_the_metric():
    with pytest.raises(SqError, match=r"1 of 6 images cannot be read \(i/3: OSError: truncated\)"):
        over(split(broken=(3,))).measure(nn.Flatten())


def test_metric_is_given_the_model_and_what_it_returns_is_returned():
    given = []

    def metric(model, seen):
        given.append(model)
        return sum(len(own.ids) for _, own in seen)

    measuring = over(split(), metric=metric)
    assert measuring.measure(nn.Flatten()) == 6
    assert given == [measuring.model]


def test_transform_is_told_that_images_are_resized():
    seen = over(split(2, resized=True)).measure(nn.Flatten())
    assert seen[0][0][:, 0].tolist() == [1000, 1001]


def test_images_of_another_shape_stop_before_the_network():
    def never(x):
        raise AssertionError

    net = nn.Flatten()
    net.forward = never
    with pytest.raises(
        SqError, match=r"evaluation images are \(1, 2, 2\), the network takes \(1, 3, 3\)"
    ):
        over(split(), shape=(1, 3, 3)).measure(net)


def test_images_that_run_together_suit_their_size():
    assert over(split(), None).batch_size == 256
    assert over(split(), None, shape=(3, 1024, 1024)).batch_size == 1
    assert over(split(), 7, shape=(3, 1024, 1024)).batch_size == 7


def labelled(classes, names=()):
    return Dataset(split(), split(), classes, "mine", names)


def test_as_many_classes_as_the_network_tells_apart_pass():
    model = Model(nn.Flatten(), [], (1, 2, 2), "", prepare)
    evaluate.check_classes(model, labelled(4), torch.device("cpu"))


@pytest.mark.parametrize("classes", [2, 3, 5, 1000])
def test_another_number_of_classes_is_refused_before_anything_runs(classes):
    model = Model(nn.Flatten(), [], (1, 2, 2), "", prepare)
    names = tuple("abcdefg"[:classes])
    with pytest.raises(
        SqError, match=rf"mine has {classes:,} classes \(a, b.*\), the network tells 4 apart"
    ) as error:
        evaluate.check_classes(model, labelled(classes, names), torch.device("cpu"))
    assert "dataset.classes=FILE" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("network", "dataset", "says"),
    [
        ("abcd", "abcd", ""),
        (["A ", "b", "c", "d"], "abcd", ""),
        ("", "abcd", ""),
        ("abcd", "", ""),
        (
            "abcd",
            "abdc",
            "dataset mine has the network's classes in another order (class 2 is d, the network's c; class 3 is c, the "
            "network's d): figures will be wrong; list them in the network's order\n",
        ),
        (
            "abcd",
            "abce",
            "dataset mine calls 1 of 4 classes otherwise than the network does (class 3 is e, the network's d): "
            "figures are right only if they are the same\n",
        ),
        (
            "abcd",
            "bcde",
            "dataset mine calls 4 of 4 classes otherwise than the network does (class 0 is b, the network's a; class 1 "
            "is c, the network's b; class 2 is d, the network's c; ...): figures are right only if they are the same\n",
        ),
    ],
)
def test_names_of_classes_are_compared(network, dataset, says, capsys):
    model = Model(nn.Flatten(), [], (1, 2, 2), "", prepare, classes=tuple(network))
    evaluate.check_classes(model, labelled(4, tuple(dataset)), torch.device("cpu"))
    assert capsys.readouterr().err == says


@pytest.mark.parametrize("classes", [2, 3, 4])
def test_another_number_of_classes_than_a_detector_s(classes):
    def decode(raw):
        return raw.new_zeros(len(raw), 7, 4), raw.new_zeros(len(raw), 7, 3)

    model = Model(nn.Flatten(), [], (1, 2, 2), "", prepare, decode=decode)
    nothing = Objects(torch.zeros(0, 4), torch.zeros(0).long(), torch.zeros(0).bool(), (2, 2))
    images = Images(["i/0"], [nothing], split().read)
    data = Dataset(images, images, classes, "mine")
    if classes == 3:
        evaluate.check_classes(model, data, torch.device("cpu"))
        return
    with pytest.raises(
        SqError,
        match=rf"mine has {classes} classes, the network tells 3 apart: .*`names` of the data",
    ):
        evaluate.check_classes(model, data, torch.device("cpu"))
