"""Intervals and tests of a difference between two networks on the same images."""

import math

import pytest
import torch

from sq.evaluation import paired_tests


def answers(both, lost, won, neither):
    full = [True] * both + [True] * lost + [False] * won + [False] * neither
    quantized = [True] * both + [False] * lost + [True] * won + [False] * neither
    return torch.tensor(full), torch.tensor(quantized)


def test_interval_by_hand():
    low, high = paired_tests.drop_interval(*answers(80, 10, 4, 6))
    n, b, c = 102, 10.5, 4.5
    middle, half = (b - c) / n, 1.959963985 * math.sqrt(b + c - (b - c) ** 2 / n) / n
    assert (low, high) == pytest.approx((middle - half, middle + half))


def test_interval_turns_with_the_networks():
    full, quantized = answers(50, 9, 3, 11)
    low, high = paired_tests.drop_interval(full, quantized)
    assert paired_tests.drop_interval(quantized, full) == pytest.approx((-high, -low))


def test_no_change_is_no_certainty():
    low, high = paired_tests.drop_interval(*answers(90, 0, 0, 10))
    assert low < 0 < high
    assert high == pytest.approx(-low)
    wider = paired_tests.drop_interval(*answers(9, 0, 0, 1))
    assert wider[1] > high


@pytest.mark.parametrize("n", [1, 2, 5])
def test_few_images_stay_within_all_and_none(n):
    low, high = paired_tests.drop_interval(*answers(0, n, 0, 0))
    assert -1 <= low < high <= 1
    assert paired_tests.drop_interval(*answers(0, 0, n, 0)) == pytest.approx((-high, -low))


@pytest.mark.parametrize(("lost", "won"), [(0.03, 0.03), (0.05, 0.01), (0.2, 0.1)])
def test_interval_holds_the_truth_as_often_as_it_says(lost, won):
    random = torch.Generator().manual_seed(0)
    hits, trials = 0, 600
    for _ in range(trials):
        u = torch.rand(300, generator=random)
        # neither is wrong on both
        low, high = paired_tests.drop_interval((u < lost) | (u > lost + won), u > lost)
        hits += low <= lost - won <= high
    assert 0.93 <= hits / trials <= 0.985


def test_mcnemar_by_hand():
    assert paired_tests.p_value(*answers(5, 6, 0, 5)) == pytest.approx(2 / 2**6)
    assert paired_tests.p_value(*answers(5, 3, 1, 5)) == pytest.approx(2 * (1 + 4) / 2**4)
    assert paired_tests.p_value(*answers(5, 2, 2, 5)) == 1
    assert paired_tests.p_value(*answers(5, 0, 0, 5)) == 1


@pytest.mark.parametrize(("lost", "won"), [(12, 3), (3, 12), (40, 31), (1, 0), (7, 7)])
def test_mcnemar_is_a_fair_coin_counted_out(lost, won):
    n = lost + won
    rarer = [k for k in range(n + 1) if abs(k - n / 2) >= abs(lost - n / 2)]
    wanted = sum(math.comb(n, k) for k in rarer) / 2**n
    assert paired_tests.p_value(*answers(20, lost, won, 4)) == pytest.approx(wanted)


def test_gain_with_one_seed_is_the_interval_of_a_drop():
    full, quantized = answers(50, 9, 3, 11)
    found = paired_tests.gain(
        [paired_tests.packed(full)], [paired_tests.packed(quantized)], len(full)
    )
    assert found == pytest.approx((6 / 73, *paired_tests.drop_interval(full, quantized)))


def test_gain_averages_seeds_image_by_image():
    ours = [torch.tensor([True, True, False]), torch.tensor([True, False, False])]
    theirs = [torch.tensor([False, False, False])]
    apart = [1, 0.5, 0]  # of each image
    middle = sum(apart) / 5
    half = 1.959963985 * math.sqrt(((1 + 0.25 + 1) / 5 - middle**2) / 5)
    found = paired_tests.gain(
        [paired_tests.packed(o) for o in ours], [paired_tests.packed(t) for t in theirs], 3
    )
    assert found == pytest.approx((0.5, middle - half, middle + half))


def test_seeds_that_agree_make_no_interval_narrower():
    full, quantized = answers(50, 9, 3, 11)
    one = paired_tests.gain(
        [paired_tests.packed(full)], [paired_tests.packed(quantized)], len(full)
    )
    assert paired_tests.gain(
        [paired_tests.packed(full)] * 3, [paired_tests.packed(quantized)] * 3, len(full)
    ) == pytest.approx(one)
