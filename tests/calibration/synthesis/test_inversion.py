"""The search for images, on a loss whose minimum is known."""

from dataclasses import dataclass
from functools import partial

import pytest
import torch
from torch import nn

from sq.calibration.synthesis import inversion
from sq.calibration.synthesis.image_request import Request
from sq.calibration.synthesis.image_request import deliver as deliver_images
from sq.errors import SqError
from sq.storage.store import NOWHERE
from sq.types.problem import Model

KNOBS = {
    "batch": 4,
    "steps": 150,
    "lr": 0.1,
    "slope": 0.0,
    "grey": 0.0,
    "contrast": 0.2,
    "jitter": 0.0,
    "flips": False,
}
KNOBS |= {"tries": 1}
MODEL = Model(nn.Linear(6, 1), [], (1, 6, 6), "", None, span=((0.0,), (1.0,)))


@dataclass(frozen=True)
class Grey:
    """Images of one level, their label's tenth; content with those of the labels it is to be content with."""

    content: tuple[int, ...] = (1, 2, 3, 4, 5, 6)

    def loss(self, x, y):
        return (x - y.view(-1, 1, 1, 1) / 10).square().sum()

    def accepted(self, x, y):
        return torch.isin(y, torch.tensor(self.content))

    def figures(self, x, y):
        return {}


def search(method=None, y=(1, 2, 3, 4, 5, 6), **knobs):
    return inversion.search(
        MODEL, Request("grey", torch.tensor(y), 0, "reference", method or Grey()), **KNOBS | knobs
    )


def test_the_minimum_is_found_for_each_label():
    x = search()
    assert x.shape == (6, 1, 6, 6)
    for image, label in zip(x, (1, 2, 3, 4, 5, 6), strict=True):
        assert image.flatten().tolist() == pytest.approx([label / 10] * 36, abs=0.01)


def test_only_what_was_refused_is_made_again():
    once, again = search(Grey((1, 2, 4)), steps=1), search(Grey((1, 2, 4)), steps=1, tries=3)
    assert [torch.equal(a, b) for a, b in zip(once, again, strict=True)] == [
        True,
        True,
        False,
        True,
        False,
        False,
    ]


def test_content_at_once_means_one_attempt():
    assert torch.equal(search(steps=1), search(steps=1, tries=5))


def test_images_that_are_not_what_was_wanted_are_told_and_refused_where_they_are_most(capsys):
    def deliver(content):
        y = torch.tensor((1, 2, 3, 4, 5, 6))
        made = partial(inversion.search, **KNOBS | {"steps": 1, "tries": 2})
        return deliver_images(
            MODEL, Request("grey", y, 0, "reference", Grey(content)), made, NOWHERE
        )

    assert len(deliver((1, 2, 3, 4, 5, 6)).x) == 6
    assert capsys.readouterr().err == ""
    assert len(deliver((1, 2, 3)).x) == 6
    assert "3 of 6 images are not taken for their class after 2 tries" in capsys.readouterr().err
    with pytest.raises(
        SqError, match=r"calibration=grey: 4 of 6 images .* raise calibration\.search\.steps"
    ):
        deliver((1, 2))


def test_time_is_told_once_and_only_if_it_is_long(capsys, monkeypatch):
    search(steps=4)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(inversion, "MIN_ANNOUNCED_SECONDS", 0.0)
    search(Grey(()), steps=4, tries=2)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("generating 6 images in 8 steps should take ")
