"""The front: each of its points is what the integer programme alone would choose there."""

import itertools

import pytest
from allocation_helpers import best, layer, networks, price, used
from cli_helpers import compose
from hypothesis import given, settings

from sq.config.instantiate import build
from sq.errors import SqError
from sq.types.costs import Budget, Cost

KNOBS = compose("allocation=pareto", "allocation.points=9")[0]["allocation"]


def allocate(case, **knobs):
    return build(KNOBS | knobs, "allocation")(*case)


@settings(max_examples=15)
@given(networks(most=4))
def test_front_is_monotone_true_and_optimal(case):
    cost, layers, budget = case
    widest = {
        each.name: budget.fixed.get(each.name) or max(cost.weights[each.name]) for each in layers
    }
    made = allocate(case, average_bits=used(layers, widest, budget.inputs)["bits"])
    front = made.report["front"]
    for before, after in itertools.pairwise(front):
        assert before["bits"] < after["bits"]
        assert before["cost"] > after["cost"]
    for point in front:
        taken = used(layers, point["widths"], budget.inputs, budget.rest)
        assert {name: point[name] for name in ("bits", "bytes", "bops")} == pytest.approx(
            {name: taken[name] for name in ("bits", "bytes", "bops")}
        )
        assert point["cost"] == pytest.approx(price(cost, point["widths"], {}), rel=1e-9, abs=1e-12)
        assert point["cost"] == pytest.approx(
            best(cost, layers, budget, {"bits": point["bits"]})[0], rel=1e-9, abs=1e-12
        )
    least = min(point["cost"] for point in front)
    # nothing bounds it
    assert made.report["objective"] == pytest.approx(least, rel=1e-9, abs=1e-12)


LAYERS = [layer("a", 300), layer("b", 100)]
PRICES = Cost({"a": {2: 4.0, 3: 2.0, 8: 0.0}, "b": {2: 9.0, 3: 3.0, 8: 0.0}})


def test_own_bits_are_what_comes_back_and_on_the_front():
    made = allocate((PRICES, LAYERS, Budget(3.0)), average_bits=3.6)
    assert made.weights == {"a": 2, "b": 8}
    assert made.report["bounds"]["bits"] == {"limit": 3.6, "used": 3.5}
    assert made.weights in [point["widths"] for point in made.report["front"]]
    assert [point["bits"] for point in made.report["front"]] == [2.0, 2.25, 3.5, 4.25, 8.0]


def test_budget_out_of_reach():
    with pytest.raises(SqError, match=r"^bits=1\.5: with candidates 2,3,8"):
        allocate((PRICES, LAYERS, Budget(3.0)), average_bits=1.5)
