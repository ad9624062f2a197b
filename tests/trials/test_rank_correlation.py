import numpy as np
import pytest
from scipy import stats

from sq.trials import rank_correlation


@pytest.fixture
def lists():
    draw = np.random.default_rng(0)
    x = draw.normal(size=40).round(1)  # rounded, so that some are equal
    return x, (x + draw.normal(size=40)).round(1)


def test_both_equal_scipys_ties_included(lists):
    found = rank_correlation.correlation(*lists, seed=0)
    assert found["spearman"] == pytest.approx(stats.spearmanr(*lists).statistic)
    assert found["kendall"] == pytest.approx(stats.kendalltau(*lists).statistic)


def test_only_the_order_counts(lists):
    x, y = lists
    assert rank_correlation.correlation(np.exp(x), y**3, seed=0) == pytest.approx(
        rank_correlation.correlation(x, y, seed=0)
    )


def test_perfect_orders_have_no_doubt():
    found = rank_correlation.correlation([1, 2, 3, 4], [10, 20, 30, 40], seed=0)
    assert found["spearman"] == found["spearman_low"] == found["kendall_high"] == pytest.approx(1)
    assert rank_correlation.correlation([1, 2, 3, 4], [4, 3, 2, 1], seed=0)[
        "kendall"
    ] == pytest.approx(-1)


def test_intervals_hold_the_truth_about_as_often_as_they_say():
    draw, truth, held = np.random.default_rng(1), 6 / np.pi * np.arcsin(0.5 / 2), 0
    for seed in range(60):
        x = draw.normal(size=80)
        found = rank_correlation.correlation(
            x, 0.5 * x + np.sqrt(0.75) * draw.normal(size=80), seed=seed
        )
        held += found["spearman_low"] <= truth <= found["spearman_high"]
    assert 51 <= held <= 60  # 95 % of 60 are 57; below 51 by chance once in 100


def test_equal_seeds_give_equal_intervals(lists):
    assert rank_correlation.correlation(*lists, seed=3) == rank_correlation.correlation(
        *lists, seed=3
    )


def test_a_constant_has_no_order():
    assert rank_correlation.correlation([1, 1, 1], [1, 2, 3], seed=0) == {}


@pytest.mark.parametrize("values", [3, 7, 1000])  # few values: many ties
def test_resamples_at_once_are_resamples_one_by_one(values):
    random = np.random.default_rng(values)
    x, y = random.integers(values, size=(2, 17)).astype(float)
    draws = random.integers(17, size=(200, 17))
    draws[0] = 5  # constant
    counts = np.array([np.bincount(draw, minlength=17) for draw in draws], dtype=float)
    for one, many in (
        (rank_correlation.spearman, rank_correlation.spearman_of_resamples),
        (rank_correlation.kendall, rank_correlation.kendall_of_resamples),
    ):
        wanted = np.array([one(x[draw], y[draw]) for draw in draws])
        assert np.array_equal(many(x, y, counts), wanted, equal_nan=True)
        assert np.isnan(wanted[0])
