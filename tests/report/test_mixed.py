"""Figures of mixed precision."""

import pytest
from test_table import record

from sq.report import mixed
from sq.report.slim import Slim


def front(*points):
    return [{"bits": bits, "top1": top1} for bits, top1 in points]


def test_fronts_are_averaged_at_budgets_that_all_of_them_reach():
    """Rounded to tenths, 2.94 and 2.96 were a budget each, and the line fell between them."""
    one, other = front((2, 50), (2.94, 80), (4, 90)), front((2, 40), (2.96, 60), (4, 90))
    places, tops = mixed._mean_front([one, other])
    assert places == [2, 2.94, 4]
    assert tops == pytest.approx([45, (80 + 40 + 20 * 0.94 / 0.96) / 2, 90])
    assert tops == sorted(tops)
    assert mixed._mean_front([other]) == ([2, 2.96, 4], [40, 60, 90])


def test_no_front_is_drawn_beyond_its_ends():
    places, tops = mixed._mean_front([front((2, 50), (4, 70)), front((3, 40), (5, 80))])
    assert places == [3, 4]
    assert tops == pytest.approx([50, 65])
    assert mixed._mean_front([front((2, 1), (3, 2)), front((4, 3), (5, 4))])[0] == []


def test_bits_are_drawn_of_records_as_reports_keep_them():
    wanted = {"stem": 8, "body": 2}
    layers = [{"name": name, "bits": bits} for name, bits in wanted.items()]
    own = record() | {"allocation": {"objective": 1.0}, "layers": layers}
    assert mixed._layer_bits(own) == wanted
    kept = Slim()(own)
    assert "layers" not in kept
    assert mixed._layer_bits(kept) == wanted
    names = [name for name, drawn in mixed.figures([kept])]
    assert names == ["bits_digits_resnet"]


def test_the_line_of_full_precision_is_on_the_images_of_the_trials():
    own = record()
    own["results"]["top1_full"] = 99.0
    own["trials"] = {"front": front((2, 50), (4, 70)), "top1_full": 98.0}
    ((name, drawn),) = mixed.figures([own])
    assert name == "front_digits_resnet"
    levels = {line.get_label(): list(line.get_ydata()) for line in drawn.axes[0].lines}
    assert levels["full precision"] == [98.0, 98.0]
