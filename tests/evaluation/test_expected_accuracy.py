"""The gate: full precision has to be what is known of the network on this image set."""

import pytest
from torch import nn

from sq.errors import SqError
from sq.evaluation import expected_accuracy
from sq.types.problem import Model


def model(**expected):
    return Model(nn.Identity(), [], (1, 1, 1), "", None, expected=expected)


@pytest.mark.parametrize("top1", [76.0, 75.75, 76.25])
def test_within_the_tolerance(top1):
    known = {"top1": 76.0, "within": 0.25}
    assert (
        expected_accuracy.check(model(imagenet=known), "imagenet", {"top1": top1, "top5": 1.0})
        == known
    )


@pytest.mark.parametrize(
    ("top1", "suspects"),
    [(75.6, "transform"), (76.4, "transform"), (50.0, "weights"), (0.1, "order of the labels")],
)
def test_off_by_more_says_what_to_suspect(top1, suspects):
    with pytest.raises(SqError) as caught:
        expected_accuracy.check(
            model(imagenet={"top1": 76.0, "within": 0.3}), "imagenet", {"top1": top1}
        )
    text = str(caught.value)
    assert text.startswith(
        f"full precision: top1 is {top1:.4g} on imagenet, expected 76 +- 0.3: suspect the {suspects}"
    )
    assert text.endswith("set model.expected.imagenet=null")
    assert "\n" not in text


@pytest.mark.parametrize(
    "expected", [{}, {"imagenet": None}, {"coco": {"map": 0.3, "within": 0.01}}]
)
def test_nothing_known_of_this_set(expected):
    assert expected_accuracy.check(model(**expected), "imagenet", {"top1": 1.0}) is None


@pytest.mark.parametrize("known", [{"map": 0.3, "within": 0.01}, {"top1": 76.0}])
def test_expectation_that_cannot_be_checked(known):
    with pytest.raises(
        SqError, match=r"model\.expected\.imagenet needs `within` beside .* of this metric \(top1\)"
    ):
        expected_accuracy.check(model(imagenet=known), "imagenet", {"top1": 76.0})


def test_nothing_is_expected_where_the_setting_says_null():
    from sq.config.constraints import Expected
    from sq.config.instantiate import check_type

    check_type(Expected, {"mine": None, "other": {"top1": 50.0, "within": 1.0}}, "model.expected")
    assert (
        expected_accuracy.check(
            Model(nn.Identity(), [], (1,), "", None, expected={"mine": None}), "mine", {"top1": 1.0}
        )
        is None
    )
