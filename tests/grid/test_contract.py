"""What every grid must hold to, whichever values it has."""

import pytest
import torch
from grids import KINDS, LEVELS, fit, values, weights
from tolerances import assert_within, relative

from sq.errors import SqError

COUNTS = {  # of levels at b bits
    "uniform": lambda b: 2**b,
    "pot": lambda b: 2**b + 1,
    "pot_strict": lambda b: 2**b,
    "post": lambda b: 2**b + 1,
    "post_strict": lambda b: 2**b,
    "apot": lambda b: 2**b - 1,
    "lcq": lambda b: 2**b - 1,
}


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


def test_all_grids_are_under_test():
    assert set(COUNTS) == set(KINDS) > {"uniform", *LEVELS}


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_as_many_levels_as_the_formula_says_and_rising(kind, bits):
    grid = fit(kind)(weights(bits, 2, 3, 20), bits)
    assert grid.levels == COUNTS[kind](bits)
    table = values(grid, 2, 3)
    assert (table.diff(dim=-1) > 0).all()
    assert (table == 0).any(-1).all()  # zero is exact
    assert torch.equal(torch.cat([end for end in grid.bounds()], -1), table[:, :, [0, -1]])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("bits", [2, 3, 4, 6])
def test_encode_is_the_nearest_of_all_levels(kind, bits, dtype):
    grid = fit(kind)(weights(bits, 2, 3, 20).to(dtype), bits)
    wide = 3 * weights(7, 2, 3, 200).to(dtype)  # many outside the grid
    table = values(grid, 2, 3)
    distance = (wide.unsqueeze(-1) - table.unsqueeze(2)).abs()
    codes = grid.encode(wide)
    assert codes.dtype == torch.int32
    found = distance.gather(-1, codes.long().unsqueeze(-1)).squeeze(-1)
    assert torch.equal(found, distance.amin(-1))
    assert torch.equal(grid.nearest(wide), grid.decode(codes))
    assert torch.equal(grid.encode(grid.nearest(wide)), codes)


def test_one_column_in_numpy_and_as_laid_out_otherwise(kind):
    grid = fit(kind)(weights(0, 2, 3, 20), 3)
    column = 2 * weights(8, 2, 3, 1)
    turned = grid.map(lambda t: t.transpose(1, 2).contiguous())
    assert torch.equal(turned.nearest(column.transpose(1, 2)), grid.nearest(column).transpose(1, 2))
    assert (
        turned.on_numpy()(column[:, :, 0].numpy()) == grid.nearest(column)[:, :, 0].numpy()
    ).all()


def test_neighbours(kind):
    grid = fit(kind)(weights(1, 1, 2, 20), 3)
    table = values(grid, 1, 2)
    codes = torch.arange(grid.levels, dtype=torch.int32).expand(1, 2, -1)
    down, up = grid.steps(codes)
    assert torch.isinf(down[..., 0]).all()
    assert torch.isinf(up[..., -1]).all()
    rounding = relative(2, table.dtype) * float(table.abs().max())
    assert_within(down[..., 1:].expand(1, 2, -1), table.diff(dim=-1), rounding)
    assert_within(up[..., :-1].expand(1, 2, -1), table.diff(dim=-1), rounding)
    assert_within(grid.half_step(), table.diff(dim=-1).amax(-1, keepdim=True) / 2, rounding)


def test_gap_is_that_of_the_two_values_around(kind):
    grid = fit(kind)(weights(1, 1, 2, 20), 3)
    table = values(grid, 1, 2)
    gaps = table.diff(dim=-1)
    inside = table[..., :-1] + 0.3 * gaps
    rounding = relative(2, table.dtype) * float(table.abs().max())
    assert_within(grid.gap(inside).expand_as(inside), gaps, rounding)
    beyond = torch.stack((2 * table[..., 0], 2 * table[..., -1]), -1)
    assert_within(grid.gap(beyond).expand_as(beyond), gaps[..., [0, -1]], rounding)
    assert ((inside - grid.nearest(inside)).abs() <= grid.gap(inside) / 2 + rounding).all()


def test_units_and_scales(kind):
    W = weights(2, 2, 3, 20)
    grid = fit(kind)(W, 3)
    codes = grid.encode(W)
    assert (grid.scale > 0).all()
    assert torch.equal(grid.scale * grid.units(codes), grid.decode(codes))
    factor = torch.tensor([0.5, 1.0, 2.0], dtype=W.dtype).view(1, 3, 1)
    assert torch.equal(grid.scaled(factor).decode(codes), factor * grid.decode(codes))


def test_refit_finds_the_scale_of_least_loss(kind, correlated):
    W, H = correlated(3, 2, 4, 20)
    grid = fit(kind)(W, 3)
    codes = grid.encode(W)

    def loss(own):
        error = W - own.decode(codes)
        return (error @ H * error).sum(-1)

    moved = grid.refit(W, H, codes)
    assert (loss(moved) <= loss(grid)).all()
    for factor in (0.99, 1.01):
        assert (loss(moved) < loss(moved.scaled(torch.full_like(grid.scale, factor)))).all()


def test_channels_are_fitted_apart(kind):
    W = weights(6, 3, 4, 20)
    whole, rows, groups = fit(kind)(W, 3), [2, 0, 1, 3], [2, 0]
    if kind == "lcq":  # they share a function: what is alone is its own layer
        whole = fit(kind, rounds=0)(W, 3)
        assert torch.equal(fit(kind, rounds=0)(W[:, rows], 3).scale, whole.scale[:, rows])
        return
    assert torch.equal(fit(kind)(W[:, rows], 3).scale, whole.scale[:, rows])
    assert torch.equal(fit(kind)(W[groups], 3).scale, whole.scale[groups])


def test_all_zero_and_one_weight(kind):
    W = weights(4, 1, 3, 10)
    W[:, 1] = 0
    grid = fit(kind)(W, 3)
    assert (grid.scale > 0).all()
    assert (grid.nearest(W)[:, 1] == 0).all()
    alone = fit(kind)(torch.tensor([[[-0.7]]]), 3)
    # as near as one of the scales that are tried brings it
    assert float(alone.nearest(torch.tensor([[[-0.7]]]))) == pytest.approx(-0.7, rel=0.01)


def test_least_error_is_less_than_that_of_the_full_range(kind):
    W = weights(1, 2, 8, 40).pow(3)
    h = weights(9, 2, 8, 40).pow(4)

    def error(grid, weight=1.0, norm=2.0):
        return (weight * (W - grid.nearest(W)).abs() ** norm).sum()

    more = {"rounds": 2, "iterations": 100} if kind == "lcq" else {}
    full = fit(kind, range="minmax", **more)(W, 4)
    least = fit(kind, range="mse", norm=2.0, **more)(W, 4)
    weighed = fit(kind, range="hmse", **more)(W, 4, h)
    assert error(least) < error(full)
    # its levels are fitted in turn with its scales, which ends in one of many minima
    if kind == "lcq":
        assert error(weighed, h) < error(fit(kind, range="hmse", rounds=0)(W, 4, h), h)
    else:
        assert error(weighed, h) < min(error(full, h), error(least, h))
    for own in (least, weighed):
        assert not torch.equal(own.scale, full.scale)


@pytest.mark.parametrize("name", LEVELS)
def test_the_scale_is_the_best_of_those_tried(name):
    W = weights(5, 1, 3, 30)
    grid = fit(name, range="mse", norm=2.0, steps=27, shrink=0.2, grow=1.5)(W, 3)
    own = grid.table
    for o in range(3):
        tried = [
            float(W[0, o].abs().max() / own.abs().max()) * (1.5 - 1.3 * k / 26) for k in range(27)
        ]
        lost = [
            sum(min((w - s * t) ** 2 for t in own.tolist()) for w in W[0, o].tolist())
            for s in tried
        ]
        assert float(grid.scale[0, o]) == pytest.approx(
            tried[lost.index(min(lost))], rel=relative(24, W.dtype)
        )


@pytest.mark.parametrize("name", LEVELS)
@pytest.mark.parametrize("bits", [-1, 0, 1, 9, 16])
def test_bits_without_levels_are_refused(name, bits):
    with pytest.raises(SqError, match=rf"^{bits} bits?: grid={name} takes 2 to 8"):
        fit(name)(weights(0, 1, 2, 4), bits)


def test_weights_that_are_no_numbers_are_refused(kind):
    W = weights(0, 1, 2, 4)
    W[0, 1, 2] = torch.nan
    with pytest.raises(SqError, match="NaN or infinity"):
        fit(kind)(W, 4)


@pytest.mark.parametrize(("range", "h"), [("hmse", None), ("mse", torch.ones(1, 2, 4))])
def test_importance_is_for_its_range_alone(kind, range, h):
    with pytest.raises(
        SqError, match=rf"^grid\.range={range} (needs a network|takes no importance)"
    ):
        fit(kind, range=range)(weights(0, 1, 2, 4), 3, h)


@pytest.mark.parametrize("bits", [2, 4])
def test_numbers_stored_beside_the_codes(kind, bits):
    grid = fit(kind)(weights(0, 2, 3, 8), bits)
    assert grid.parameters() == (2 * 6 if kind == "uniform" else 6 + COUNTS[kind](bits))
