"""What the figure of an experiment shows, whatever its runs differ in."""

import pytest

from sq.report import figure


def row(**labels):
    own = {"score": [90.0, 91.0], "drop": [2.0, 1.0], "relative_error": [0.1, 0.2], "solve_seconds": [1.0, 2.0]}
    named = {name.replace("_", " ").replace("act bits", "act. bits"): value for name, value in labels.items()}
    return {"labels": {"method": "rtn", "bits": 4.0, **named}, "headline": "top1", "runs": 2, **own}


@pytest.mark.parametrize(
    ("rows", "along"),
    [
        ([row(bits=4.0), row(bits=3.0)], "bits"),
        ([row()], "bits"),
        ([row(bits=b, images=i) for b in (4.0, 3.0) for i in (1, 2, 3)], "bits"),
        ([row(images=i, damp=d) for i in (16, 64, 256) for d in (0.1, 1.0)], "images"),
        ([row(act_bits=b, range=r) for b in (8, 4) for r in ("mse", "kl")], "act. bits"),
        ([row(flag=f, range=r) for f in (True, False) for r in ("mse", "kl")], "bits"),
        ([row(images=i) for i in (16, None)], "bits"),
    ],
)
def test_what_accuracy_stands_against(rows, along):
    assert figure.varied(rows) == along


def drawn(rows):
    made = figure.methods(rows)
    figure.pyplot().close(made)
    return made


def test_a_number_that_varies_widely_is_logarithmic_with_every_value_named():
    made = drawn([row(method=m, images=i) for m in ("rtn", "obq") for i in (16, 64, 256)])
    accuracy, tradeoff = made.axes
    assert (accuracy.get_xlabel(), accuracy.get_xscale()) == ("images", "log")
    assert [tick.get_text() for tick in accuracy.get_xticklabels()] == ["16", "64", "256"]
    assert {text.get_text() for text in tradeoff.texts} == {"16", "64", "256"}
    assert [text.get_text() for text in accuracy.get_legend().get_texts()] == ["full precision", "rtn", "obq"]


def test_activation_bits_are_panels_unless_they_are_all_that_varies():
    both = [row(bits=b, act_bits=a) for b in (4.0, 3.0) for a in (8, 4)]
    assert [axes.get_xlabel() for axes in drawn(both).axes[:-1]] == ["weight bits", "weight bits"]
    alone = drawn([row(range=r, act_bits=a) for r in ("mse", "kl") for a in (8, 4)])
    assert [axes.get_xlabel() for axes in alone.axes[:-1]] == ["act. bits"]


def test_many_names_stand_beside_the_panels():
    made = drawn([row(method=f"m{i}", bits=b) for i in range(9) for b in (4.0, 3.0)])
    assert made.axes[0].get_legend() is None
    (legend,) = made.legends
    assert len(legend.get_texts()) == 10
