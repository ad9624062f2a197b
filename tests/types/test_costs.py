"""What bits cost in all, and what a record says of it."""

import pytest

from sq.evaluation import summarize
from sq.types.costs import Cost, Widths

COST = Cost({"a": {2: 3.0, 4: 1.0}, "b": {8: 0.5}}, {"a": {4: 0.25}})


def test_bits_without_a_price_cost_nothing():
    assert COST.of({"a": 4, "b": 8}, {"a": 4, "b": 8}) == 1.75
    assert COST.of({"a": 5, "b": 4, "c": 2}, {"a": 3}) == 0


def test_what_a_record_predicts_is_of_layers_that_all_have_a_price():
    def predicted(weights, fixed):
        return summarize.costs(COST, Widths(weights), fixed)["cost"]["predicted"]

    assert predicted({"a": 4, "b": 8}, {}) == 1.5
    assert predicted({"a": 4, "b": 6}, {"b": 6}) == 1
    assert predicted({"a": 4, "c": 8}, {"c": 8}) == pytest.approx(1)
    assert predicted({"a": 5, "b": 8}, {}) is None  # a uniform width that was not priced
    assert predicted({"a": 4, "c": 8}, {}) is None
