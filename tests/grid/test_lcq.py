import numpy as np
import pytest
import torch
from grids import fit, weights
from tolerances import assert_within, relative

from sq.grid import lcq

HEAVY = weights(3, 4, 25, 60).pow(3)


def test_a_function_of_equal_shares_leaves_levels_equally_spaced():
    assert lcq.table(4, torch.zeros(16, dtype=torch.float64)).tolist() == pytest.approx(
        [j / 7 for j in range(-7, 8)]
    )


def test_levels_are_where_the_function_reaches_them():
    theta = weights(0, 16)
    rises = np.concatenate(([0.0], np.cumsum(np.exp(theta.numpy()) / np.exp(theta.numpy()).sum())))
    # g of each level
    compressed = np.interp(lcq.expanded(31, theta).numpy(), np.linspace(0, 1, 17), rises)
    assert compressed == pytest.approx(
        np.arange(32) / 31, abs=relative(32, theta.dtype) * 16 * np.diff(rises).max()
    )
    table = lcq.table(6, theta)
    assert torch.equal(table, -table.flip(0))
    assert (table[0], table[31], table[-1]) == (-1, 0, 1)


def test_levels_have_the_derivatives_of_the_function():
    assert torch.autograd.gradcheck(
        lambda theta: lcq.expanded(7, theta), weights(1, 5).requires_grad_()
    )


@pytest.mark.parametrize(("s", "intervals"), [(7, 5), (31, 16), (127, 16), (7, 40)])
def test_derivatives_written_out_are_those_of_autograd(s, intervals):
    theta, slope = weights(6, intervals).requires_grad_(), weights(7, s + 1)
    wanted = lcq.expanded(s, theta)
    wanted.backward(slope)
    above, to_theta = lcq._expanded(np.linspace(0, 1, s + 1)[1:-1], theta.detach().numpy())
    assert above == pytest.approx(wanted.detach().numpy(), abs=1e-14)
    assert to_theta(slope.numpy()) == pytest.approx(theta.grad.numpy(), rel=1e-10, abs=1e-14)


def test_no_rounds_and_2_bits_are_equally_spaced():
    for grid in (fit("lcq", rounds=0)(HEAVY, 4), fit("lcq")(HEAVY, 2)):
        equal = torch.full_like(grid.table[1:], 2 / (grid.levels - 1))
        assert_within(grid.table.diff(), equal, relative(32, grid.table.dtype))


@pytest.mark.parametrize("bits", [3, 4, 5])
@pytest.mark.parametrize("range", ["mse", "hmse", "minmax"])
def test_fitted_is_better_than_equally_spaced(bits, range):
    h = weights(4, 4, 25, 60).square() if range == "hmse" else None
    cost = torch.ones_like(HEAVY) if h is None else h

    def lost(rounds):
        grid = fit("lcq", range=range, norm=2.0, rounds=rounds)(HEAVY, bits, h)
        return float((cost * (HEAVY - grid.nearest(HEAVY)).square()).sum())

    assert lost(2) < 0.9 * lost(0)


def lloyd(W, s):
    """Return the least mean squared error of 2 s + 1 levels, symmetric around zero, by Lloyd's iteration."""
    u = np.sort(np.abs(W))
    levels = np.arange(s + 1) / s * u.max() / 2
    for _ in range(3000):
        cell = np.searchsorted((levels[1:] + levels[:-1]) / 2, u)
        sums, counts = (np.bincount(cell, w, s + 1) for w in (u, None))
        levels[1:] = (sums / np.maximum(counts, 1))[1:]
    return float(np.mean((u - levels[np.searchsorted((levels[1:] + levels[:-1]) / 2, u)]) ** 2))


@pytest.mark.parametrize("bits", [3, 4])
def test_near_the_best_levels_there_are(bits):
    W = weights(5, 1, 1, 20000)
    grid = fit("lcq", norm=2.0, rounds=3, iterations=200, steps=200)(W, bits)
    found = float((W - grid.nearest(W)).square().mean())
    # an approximation: a descent beside Lloyd's
    assert found == pytest.approx(lloyd(W.flatten().numpy(), 2 ** (bits - 1) - 1), rel=0.02)


def test_units_of_weights_and_importance_do_not_matter():
    h = weights(4, 4, 25, 60).square()
    one, other = (
        fit("lcq", range="hmse")(s * HEAVY, 4, t * h) for s, t in ((1.0, 1.0), (2.0**-40, 2.0**60))
    )
    assert torch.equal(one.table, other.table)
    assert torch.equal(one.scale * 2.0**-40, other.scale)
