"""Levels of POST and PoT against their formulas, and their errors against integrals."""

import functools
import math

import numpy as np
import pytest
import torch
from grids import fit, weights
from tolerances import relative

from sq.grid import post, pot

TABLES = {"pot": pot.table, "post": post.table}
BASE = {"pot": 2.0, "post": math.sqrt(2)}


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_levels_are_powers_of_the_base(name, bits):
    above = [BASE[name] ** -k for k in range(2 ** (bits - 1))]
    wanted = sorted([*above, 0.0, *(-m for m in above)])
    assert TABLES[name](bits, False).tolist() == pytest.approx(
        wanted, rel=relative(2 ** (bits - 1), torch.float64)
    )
    wanted.remove(-above[-1])  # strict: without the smallest below zero
    assert TABLES[name](bits, True).tolist() == pytest.approx(
        wanted, rel=relative(2 ** (bits - 1), torch.float64)
    )
    assert len(wanted) == 2**bits


def test_levels_of_post_at_4_bits():
    wanted = [0.0, 0.0884, 0.125, 0.1768, 0.25, 0.3536, 0.5, 0.7071, 1.0]
    # printed to 4 decimals
    assert post.table(4, False)[8:].tolist() == pytest.approx(wanted, abs=5e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_level_is_a_shift_of_one_of_two_numbers(dtype):
    table = post.table(8, False).to(dtype)[129:].flip(0)
    assert torch.equal(table[0::2], torch.tensor(2.0, dtype=dtype) ** -torch.arange(64))
    assert torch.equal(table[1::2], table[0::2] * torch.tensor(math.sqrt(0.5), dtype=dtype))


# Least mean squared errors for weights of variance 1: those that a search over samples found (two
# digits or three).
FOUND = {
    ("gauss", "uniform"): (0.151, 0.0414, 0.01223, 0.0037),
    ("gauss", "pot"): (0.084, 0.0399, 0.0377, 0.0377),
    ("gauss", "post"): (0.118, 0.0410, 0.01141, 0.0099),
    ("gauss", "post_strict"): (0.159, 0.0569, 0.01238, 0.0099),
    ("laplace", "uniform"): (0.210, 0.0730, 0.0259, 0.0093),
    ("laplace", "pot"): (0.133, 0.0487, 0.0384, 0.0384),
    ("laplace", "post"): (0.182, 0.0789, 0.0170, 0.0102),
    ("laplace", "post_strict"): (0.227, 0.1019, 0.0201, 0.0102),
}


@functools.cache
def quantiles(shape):
    """Return weights (1, 1, 40000) that are as likely as one another, of variance 1."""
    p = (torch.arange(40000, dtype=torch.float64) + 0.5) / 40000
    half = torch.tensor(0.5, dtype=torch.float64).sqrt()
    made = {
        "gauss": torch.distributions.Normal(0 * half, 1.0),
        "laplace": torch.distributions.Laplace(0 * half, half),
    }
    W = made[shape].icdf(p).view(1, 1, -1)
    return W / W.square().mean().sqrt()


@functools.cache
def error(shape, kind, bits):
    W = quantiles(shape)
    knobs = {"symmetric": True} if kind == "uniform" else {"grow": 1.0}
    grid = fit(kind, norm=2.0, steps=60, shrink=0.08, **knobs)(W, bits)
    return float((W - grid.nearest(W)).square().mean())


def integral(shape, table):
    """Return the least integral of (w - nearest)^2 over the density, of scales from 0.5 to 6."""
    w = np.linspace(-20, 20, 20001)
    p = np.exp(-(w**2) / 2) if shape == "gauss" else np.exp(-math.sqrt(2) * np.abs(w))
    p /= p.sum()
    middles = (table[1:] + table[:-1]) / 2
    return min(
        float(p @ (w - s * table[np.searchsorted(s * middles, w)]) ** 2)
        for s in np.linspace(0.5, 6, 111)
    )


@pytest.mark.parametrize(("shape", "kind"), FOUND)
def test_errors_are_those_of_the_table(shape, kind):
    for bits, found in zip((2, 3, 4, 5), FOUND[shape, kind], strict=True):
        own = error(shape, kind, bits)
        # The table's own search left a few percent, most for uniform grids of many bits: no worse,
        # and near.
        assert 0.91 * found < own < 1.02 * found, (bits, own)


@pytest.mark.parametrize(("shape", "kind"), [key for key in FOUND if key[1] != "uniform"])
def test_errors_are_the_least_integrals(shape, kind):
    name, _, strict = kind.partition("_")
    for bits in (2, 3, 4, 5):
        least = integral(shape, TABLES[name](bits, bool(strict)).numpy())
        # two approximations
        assert error(shape, kind, bits) == pytest.approx(least, rel=0.02), bits


@pytest.mark.parametrize("shape", ["gauss", "laplace"])
def test_post_is_a_format_for_4_bits(shape):
    assert error(shape, "post", 4) < error(shape, "uniform", 4)
    assert error(shape, "post", 5) > error(shape, "uniform", 5)
    assert error(shape, "post_strict", 5) > error(shape, "uniform", 5)
    assert error(shape, "post", 2) > error(shape, "pot", 2)
    # with no more levels than uniform grids have
    assert error(shape, "post_strict", 2) > error(shape, "uniform", 2)


def test_wider_than_the_largest_weight_pays_where_levels_are_far_apart():
    W = weights(0, 1, 64, 9)

    def lost(grow):
        grid = fit("pot", norm=2.0, steps=200, grow=grow)(W, 4)
        return float((W - grid.nearest(W)).square().sum())

    assert lost(1.5) < 0.95 * lost(1.0)
