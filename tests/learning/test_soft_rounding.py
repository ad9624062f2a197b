import grids
import pytest
import torch
from tolerances import assert_near, assert_within, relative
from torch import nn

from sq.learning import soft_rounding
from sq.learning.soft_rounding import SoftRounding
from sq.network import geometry
from sq.types.problem import Layer


def layer(outputs=4, inputs=6, bias=True):
    torch.manual_seed(0)
    module = nn.Linear(inputs, outputs, bias=bias)
    return Layer("0", module, "linear", 1, outputs, inputs)


@pytest.fixture(scope="module", params=["uniform", "pot", "post_strict", "apot", "lcq"])
def fit(request):
    return grids.fit(request.param)


def made(fit, codes=None, bits=3):
    own = layer()
    W = geometry.weight(own.module)
    grid = fit(W, bits)
    return SoftRounding(own, W, grid, grid.encode(W) if codes is None else codes, 1e-3), W, grid


def test_h_starts_at_the_fractional_part(fit):
    own, W, grid = made(fit)
    table = grids.values(grid, 1, 4)
    low, high = grid.bounds()
    inside = (low <= W) & (high >= W)
    # of the two around it
    lower = (table.unsqueeze(2) <= W.unsqueeze(-1)).sum(-1).clamp(1, grid.levels - 1) - 1
    ends = table.gather(2, lower), table.gather(2, lower + 1)
    share = ((W - ends[0]) / (ends[1] - ends[0]))[inside]
    assert inside.float().mean() > 0.5
    # a share near 1/2 is moved off it by 1e-3, on the side of its code
    assert torch.allclose(soft_rounding.soft(own.alpha)[inside], share, atol=2e-3)


def test_soft_weights_start_at_the_weights_the_grid_can_reach(fit):
    own, W, grid = made(fit)
    low, high = grid.bounds()
    reached = torch.maximum(torch.minimum(W, high), low).view(W.shape[1:])
    assert torch.allclose(own.weight(own.h("soft")), reached, atol=float(2e-3 * grid.scale.max()))


def test_inverse_and_its_ends():
    h = torch.tensor([0.0, 0.01, 0.25, 0.5, 0.9, 1.0])
    assert torch.allclose(
        soft_rounding.soft(soft_rounding.inverse(h)), h, atol=relative(4, h.dtype)
    )
    assert torch.isfinite(soft_rounding.inverse(h)).all()


@pytest.mark.parametrize("beta", [2.0, 5.5, 20.0])
def test_regulariser_is_zero_exactly_where_roundings_are_hard(beta):
    hard = torch.tensor([0.0, 1.0, 1.0, 0.0])
    assert float(soft_rounding.regulariser(hard, beta)) == 0
    assert float(soft_rounding.regulariser(torch.tensor([0.5, 0.0]), beta)) == 1
    assert float(soft_rounding.regulariser(torch.tensor([0.0, 0.99]), beta)) > 0


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_any_codes_come_back_unless_something_is_learned(fit, bits):
    random = torch.Generator().manual_seed(bits)
    codes = torch.randint(0, 2**bits - 1, (1, 4, 6), generator=random, dtype=torch.int32)
    own, _, grid = made(fit, codes, bits)
    assert torch.equal(own.codes(), codes)
    assert own.flipped() == 0
    assert torch.equal(own.weight(own.h("fixed")), grid.decode(codes).view(4, 6))
    assert torch.equal(own.grid().decode(own.codes()), grid.decode(codes))


def test_a_tie_keeps_its_code(fit):
    own, _, grid = made(fit)
    table = grids.values(grid, 1, 4)
    W = table[..., 1:3].mean(-1, keepdim=True).expand(1, 4, 6)
    for up in (0, 1):
        codes = torch.full((1, 4, 6), 1 + up, dtype=torch.int32)
        assert torch.equal(SoftRounding(own.layer, W, grid, codes, 1e-3).codes(), codes)


def test_every_rounding_stays_on_the_grid(fit):
    random = torch.Generator().manual_seed(1)
    own, _, grid = made(fit, torch.randint(0, 7, (1, 4, 6), generator=random, dtype=torch.int32))
    for sign in (-1, 1):
        with torch.no_grad():
            own.alpha.fill_(sign * 9.0)
        codes = own.codes()
        assert ((codes >= 0) & (codes < grid.levels)).all()
        assert own.flipped() > 0


def test_hard_forward_has_the_gradient_of_the_soft_one(fit):
    own, _, _ = made(fit)
    soft, hard = own.h("soft"), own.h("hard")
    assert torch.equal(hard.detach(), own.h("fixed"))
    wanted = torch.autograd.grad(soft.sum(), own.alpha)[0]
    assert torch.equal(torch.autograd.grad(hard.sum(), own.alpha)[0], wanted)
    assert float(wanted.abs().max()) > 0


def test_learned_scale_folds_into_the_grid(fit):
    own, _, _ = made(fit)
    with torch.no_grad():
        own.sigma.copy_(torch.tensor([0.9, 1.0, 1.1, 1.3]).view(1, 4, 1))
    decoded = own.grid().decode(own.codes()).view(4, 6)
    assert_near(own.weight(own.h("fixed")), decoded, relative(3, decoded.dtype))


def test_uniform_grids_of_1_bit_and_their_last_code():
    for bits in (1, 3):
        codes = torch.full((1, 4, 6), 2**bits - 1, dtype=torch.int32)
        own, _, grid = made(grids.fit("uniform"), codes, bits)
        assert torch.equal(own.codes(), codes)
        assert torch.equal(own.weight(own.h("fixed")), grid.decode(codes).view(4, 6))


def test_weights_are_learned_between_two_neighbouring_levels():
    own, W, grid = made(grids.fit("post"))
    table = grids.values(grid, 1, 4)
    bound = relative(3, W.dtype) * float(table.abs().max())
    for h, codes in ((0.0, own.lower), (1.0, own.lower + 1)):
        reached = own.weight(torch.full_like(W, h)).view_as(W)
        assert_within(reached, table.gather(2, codes.long()), bound)
    middle = own.weight(torch.full_like(W, 0.5)).view_as(W)
    lower = own.lower.long()
    assert_within(middle, (table.gather(2, lower) + table.gather(2, lower + 1)) / 2, bound)
    assert own.gap is not None
    assert made(grids.fit("uniform"))[0].gap is None
