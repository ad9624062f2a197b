import pytest
import torch

from sq.errors import SqError
from sq.grid.uniform_grid import per_tensor
from sq.learning.adaptive_step import (
    MIN_BETA,
    Adapter,
    AdaptiveGrid,
    AdaptiveInputQuantizer,
    AdaptiveQuantize,
)
from sq.learning.learned_step import InputQuantizer

SHAPES = [(5, 3), (4, 12), (3, 6, 4, 4), (2, 16, 3, 3)]


def inputs(shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def learned(channels):
    """An adapter that is no longer where it started."""
    own = Adapter(channels, 0).double()
    with torch.no_grad():
        for i, p in enumerate(own.parameters()):
            p.add_(0.3 * inputs(p.shape, i))
    return own


@pytest.mark.parametrize("shape", SHAPES)
def test_at_start_it_is_the_grid_without_an_adapter(shape):
    x, grid = inputs(shape).float(), per_tensor(-1.0, 1.5, 3, False)
    own = AdaptiveGrid(grid, Adapter(shape[1], 0))
    assert torch.equal(own.adapter(x), torch.ones(len(x)))
    assert torch.equal(own.nearest(x), grid.nearest(x))


def test_beta_by_hand():
    own, x = learned(8), inputs((3, 8, 2, 5))
    means = x.mean((2, 3))
    hidden = (means @ own.squeeze.weight.T + own.squeeze.bias).clamp(min=0)
    wanted = (hidden @ own.last.weight.T + own.last.bias).clamp(min=0)[:, 0].clamp(min=MIN_BETA)
    assert own.squeeze.out_features == 2
    assert torch.allclose(own(x), wanted)
    assert len({round(float(b), 6) for b in own(x).detach()}) == 3, "each sample has its own"


def test_narrow_inputs_have_no_hidden_layer():
    assert Adapter(7, 0).squeeze is None
    assert Adapter(8, 0).squeeze is not None


def test_a_step_is_never_zero():
    own = Adapter(3, 0)
    with torch.no_grad():
        own.last.bias.fill_(-1.0)
    assert torch.equal(own(torch.randn(4, 3)), torch.full((4,), MIN_BETA))


@pytest.mark.parametrize("shape", [(4,), (4, 5), (4, 5, 2, 2)])
def test_what_has_not_these_channels_is_refused_in_one_line(shape):
    with pytest.raises(
        SqError, match=r"takes inputs \(samples, 3 channels, \.\.\.\), got \(4,"
    ) as caught:
        Adapter(3, 0)(torch.zeros(shape))
    assert len(str(caught.value).splitlines()) == 1


def surrogate(x, scale, low, high, at):
    """x' as a function that has the straight-through derivatives: what rounding adds is held as it is at `at`."""
    apart = at.round() - at
    wide = scale.view(-1, *[1] * (x.ndim - 1))
    return wide * torch.where(at < low, low, torch.where(at > high, high, x / wide + apart))


@pytest.mark.parametrize("shape", SHAPES)
def test_derivatives_by_finite_differences(shape):
    x, g = inputs(shape).requires_grad_(), inputs(shape, 1)
    scale = (0.3 + 0.05 * inputs((shape[0],), 2).tanh()).requires_grad_()
    low, high = torch.tensor(-3.0, dtype=torch.float64), torch.tensor(2.0, dtype=torch.float64)
    by_x, by_scale = torch.autograd.grad(AdaptiveQuantize.apply(x, scale, low, high), (x, scale), g)
    with torch.no_grad():
        at, step = x / scale.view(-1, *[1] * (x.ndim - 1)), 1e-6
        assert bool((at < low).any() & (at > high).any() & (at.abs() < 3).any()), (
            "every case is there"
        )
        assert torch.allclose(
            AdaptiveQuantize.apply(x, scale, low, high), surrogate(x, scale, low, high, at)
        )
        for i in range(len(scale)):
            nudge = torch.zeros_like(scale)
            nudge[i] = step
            up, down = (surrogate(x, scale + sign * nudge, low, high, at) for sign in (1, -1))
            assert float(by_scale[i]) == pytest.approx(
                float(((up - down) * g).sum()) / (2 * step), rel=1e-5, abs=1e-7
            )
        up, down = (surrogate(x + sign * step, scale, low, high, at) for sign in (1, -1))
        assert torch.allclose(by_x, (up - down) * g / (2 * step), atol=1e-6)


def test_derivatives_by_the_closed_forms():
    # v = 0.4 (rounds to 0), 1.6 (to 2), -9 (below), 9 (above), of step 0.5
    x = torch.tensor([[0.2, 0.8, -4.5, 4.5]], dtype=torch.float64, requires_grad=True)
    s, beta = (torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (0.25, 2.0))
    low, high = torch.tensor(-2.0), torch.tensor(3.0)
    y = AdaptiveQuantize.apply(x, (s * beta).reshape(1), low, high)
    assert y.tolist() == [[0.0, 1.0, -1.0, 1.5]]
    g = torch.tensor([[1.0, 10.0, 100.0, 1000.0]], dtype=torch.float64)
    by_x, by_s, by_beta = torch.autograd.grad(y, (x, s, beta), g)
    by_step = 1 * (0 - 0.4) + 10 * (2 - 1.6) + 100 * -2 + 1000 * 3
    assert by_x.tolist() == [[1.0, 10.0, 0.0, 0.0]]
    assert (float(by_s), float(by_beta)) == pytest.approx((2.0 * by_step, 0.25 * by_step))


def test_parameters_are_counted():
    grid = per_tensor(0.0, 1.0, 4, False)
    assert AdaptiveGrid(grid, Adapter(8, 0)).parameters() == grid.parameters() + (8 * 2 + 2) + (
        2 + 1
    )
    assert AdaptiveGrid(grid, Adapter(8, 0)).levels == 16


def test_the_hidden_layer_follows_the_seed_and_leaves_other_draws_alone():
    torch.manual_seed(3)
    wanted = torch.rand(2)
    torch.manual_seed(3)
    one, same, other = (Adapter(16, seed).squeeze.weight for seed in (0, 0, 1))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert torch.equal(torch.rand(2), wanted)


@pytest.mark.parametrize("last", [False, True])
def test_at_start_gradients_are_those_of_one_step_for_all(last):
    grid = per_tensor(-1.0, 1.5, 3, False)
    low, high = (float(end) for end in grid.bounds())
    x = torch.cat(
        [
            inputs((4, 8, 5, 5)).float().flatten(),
            torch.tensor([low, high, high + 2e-7, low - 2e-7] * 50),
        ]
    )
    x = x[: 4 * 8 * 31].view(4, 8, 31, 1)
    x = x.contiguous(memory_format=torch.channels_last) if last else x
    one, other = InputQuantizer(grid), AdaptiveInputQuantizer(grid, Adapter(8, 0))
    g, found = inputs(x.shape, 1).float(), []
    for own in (one, other):
        given = x.clone().requires_grad_()
        made = own(given)
        found.append((made.detach(), *torch.autograd.grad(made, [given, own.sigma], g)))
    assert torch.equal(found[0][0], found[1][0])
    assert torch.equal(found[0][1], found[1][1])
    assert float(found[1][2]) == pytest.approx(float(found[0][2]), rel=1e-4, abs=1e-4)
