import pytest
import torch

from sq.activation import minmax


@pytest.mark.parametrize("bits", [1, 2, 8, 16])
def test_affine_by_hand(see, bits):
    grid = minmax.fit(see(torch.tensor([-1.0, 0.5, 2.0])), bits, symmetric=False)
    assert float(grid.scale) == pytest.approx(3 / (2**bits - 1))
    assert float(grid.low) == -round((2**bits - 1) / 3)


def test_signed_by_hand(see):
    grid = minmax.fit(see(torch.tensor([-1.0, 0.5, 2.0])), 4, symmetric=True)
    assert float(grid.scale) == pytest.approx(4 / 15)
    assert (float(grid.low), float(grid.high)) == (-8, 7)


@pytest.mark.parametrize("symmetric", [False, True])
def test_unsigned_by_hand(see, symmetric):
    grid = minmax.fit(see(torch.tensor([0.5, 3.0])), 4, symmetric=symmetric)
    assert float(grid.scale) == pytest.approx(3 / 15)
    assert (float(grid.low), float(grid.high)) == (0, 15)


@pytest.mark.parametrize("symmetric", [False, True])
def test_nothing_is_clipped(see, inputs, symmetric):
    for x in inputs.values():
        grid = minmax.fit(see(x), 5, symmetric=symmetric)
        assert ((x - grid.nearest(x)).abs() <= grid.half_step() * (1 + 1e-5)).all()
