import pytest
import torch

from sq.grid import apot


@pytest.mark.parametrize(
    ("bits", "above"),
    [
        (2, [1]),
        (3, [1 / 4, 1 / 2, 1]),
        (4, [1 / 8, 1 / 4, 3 / 8, 1 / 2, 3 / 4, 1, 5 / 4]),  # {0, 1, 1/2, 1/8} + {0, 1/4}
        # {0, 1, 1/4, 1/16} + {0, 1/2, 1/8, 1/32}, in 32nds
        (5, [k / 32 for k in (1, 2, 3, 4, 6, 8, 9, 12, 16, 18, 24, 32, 33, 36, 48)]),
    ],
)
def test_levels_by_hand(bits, above):
    assert apot.table(bits).tolist() == [*(-m for m in reversed(above)), 0, *above]


@pytest.mark.parametrize("bits", [3, 4, 5, 6, 7, 8])
def test_a_magnitude_is_a_sum_of_few_powers_of_two(bits):
    above = apot.table(bits)[2 ** (bits - 1) :]
    steps = (above * 2**20).long()
    assert torch.equal(steps.double() / 2**20, above)
    ones = [bin(step).count("1") for step in steps.tolist()]
    assert max(ones) == bits // 2
    assert len(set(steps.tolist())) == 2 ** (bits - 1) - 1
