import math

import grids
import pytest
import torch
from tolerances import assert_within, relative
from torch import nn

from sq.network import geometry
from sq.training.weight_projection import Project, ProjectedWeight, rescaled
from sq.types.problem import Layer


def fitted(kind, bits=3):
    W = grids.weights(0, 2, 3, 12)
    return W, grids.fit(kind)(W, bits)


@pytest.mark.parametrize("kind", grids.KINDS)
def test_value_is_the_nearest_of_the_grid_with_the_learned_scale(kind):
    W, grid = fitted(kind)
    scale = 1.3 * grid.scale
    q = Project.apply(W, scale, grid)
    values = grids.values(rescaled(grid, scale), 2, 3)  # (G, O, levels)
    least = (W[..., None] - values[..., None, :]).abs().amin(-1)
    assert_within((W - q).abs(), least, relative(2, W.dtype) * float(values.abs().max()))


@pytest.mark.parametrize("kind", grids.KINDS)
def test_derivatives_by_finite_differences(kind):
    # of the function whose units stay as they are, with what rounding adds held: its derivatives
    # are straight-through
    W, grid = fitted(kind)
    W, scale = W.requires_grad_(), (0.6 * grid.scale).requires_grad_()
    g = grids.weights(1, *W.shape)
    by_w, by_s = torch.autograd.grad(Project.apply(W, scale, grid), (W, scale), g)
    with torch.no_grad():
        own = rescaled(grid, scale)
        units, (low, high) = own.units(own.encode(W)), own.bounds()
        inside, at = W.clamp(low, high) == W, W / scale
        assert bool(inside.any() & (~inside).any()), "both cases are there"

        def surrogate(W, scale):
            return torch.where(inside, W + scale * (units - at), scale * units)

        step = 1e-6
        size = float(units.abs().max() * scale.max())
        rounding = relative(4, W.dtype) * (size + float(W.abs().max()))
        assert_within(surrogate(W, scale), Project.apply(W, scale, grid), rounding)
        # linear in both, so that differences are off by rounding alone
        rounding *= float(g.abs().sum(-1).max()) / step
        up, down = (surrogate(W, scale + sign * step) for sign in (1, -1))
        assert_within(by_s, ((up - down) * g).sum(-1, keepdim=True) / (2 * step), rounding)
        up, down = (surrogate(W + sign * step, scale) for sign in (1, -1))
        assert_within(by_w, (up - down) * g / (2 * step), rounding)


def test_derivatives_on_a_uniform_grid_by_hand():
    grid = grids.fit("uniform")(torch.tensor([[[-4.0, 3.0]]], dtype=torch.float64), 3)
    W = torch.tensor([[[0.4, 1.6, -9.0, 9.0]]], dtype=torch.float64, requires_grad=True)
    scale = torch.ones(1, 1, 1, dtype=torch.float64, requires_grad=True)
    low, high = (float(end) for end in rescaled(grid, scale.detach()).bounds())
    g = torch.tensor([[[1.0, 10.0, 100.0, 1000.0]]], dtype=torch.float64)
    by_w, by_s = torch.autograd.grad(Project.apply(W, scale, grid), (W, scale), g)
    assert by_w.tolist() == [[[1.0, 10.0, 0.0, 0.0]]]
    assert float(by_s) == pytest.approx((0 - 0.4) + 10 * (2 - 1.6) + 100 * low + 1000 * high)


def layer(module):
    found, _ = geometry.find(nn.Sequential(module))
    return found[0]


@pytest.mark.parametrize("module", [nn.Linear(6, 4), nn.Conv2d(4, 6, 3, groups=2)])
def test_codes_and_grid_are_what_the_network_computes_with(module):
    own: Layer = layer(module)
    grid = grids.fit("uniform")(geometry.weight(module), 3)
    made = ProjectedWeight(own, grid)
    with torch.no_grad():
        made.scale.mul_(1.2)
        made.value.add_(0.05)
    y = made()
    assert y.shape == module.weight.shape
    assert torch.equal(made.grid().decode(made.codes()).reshape(y.shape), y.detach())


def test_gradients_of_scales_are_slowed_by_range_and_number():
    module = nn.Linear(9, 2)
    grid = grids.fit("uniform", symmetric=True)(geometry.weight(module), 4)
    assert ProjectedWeight(layer(module), grid).scale_gradient_factor == pytest.approx(
        1 / math.sqrt(8 * 9)
    )
    levels = grids.fit("post")(geometry.weight(module), 4)
    assert ProjectedWeight(layer(module), levels).scale_gradient_factor == pytest.approx(
        1 / math.sqrt(9)
    )
