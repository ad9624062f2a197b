"""Figures of mixed precision."""

import pytest

from sq.report import mixed


def front(*points):
    return [{"bits": bits, "top1": top1} for bits, top1 in points]


def test_fronts_are_averaged_at_budgets_that_all_of_them_reach():
    """Rounded to tenths, 2.94 and 2.96 were a budget each, and the line fell between them."""
    one, other = front((2, 50), (2.94, 80), (4, 90)), front((2, 40), (2.96, 60), (4, 90))
    places, tops = mixed._averaged([one, other])
    assert places == [2, 2.94, 4]
    assert tops == pytest.approx([45, (80 + 40 + 20 * 0.94 / 0.96) / 2, 90])
    assert tops == sorted(tops)
    assert mixed._averaged([other]) == ([2, 2.96, 4], [40, 60, 90])


def test_no_front_is_drawn_beyond_its_ends():
    places, tops = mixed._averaged([front((2, 50), (4, 70)), front((3, 40), (5, 80))])
    assert places == [3, 4]
    assert tops == pytest.approx([50, 65])
    assert mixed._averaged([front((2, 1), (3, 2)), front((4, 3), (5, 4))])[0] == []
