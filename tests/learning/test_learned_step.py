import pytest
import torch
from tolerances import assert_within, relative

from sq.grid.uniform_grid import per_tensor
from sq.learning.learned_step import InputQuantizer
from sq.learning.schedules import PrecisionMix


def slow(x, sigma, grid, m):
    """Straight-through by detaching: what autograd makes of the formula itself."""
    s = sigma * grid.scale
    steps = (x / s).clamp(grid.low, grid.high)
    rounded = steps + (steps.round() - steps).detach()
    return x + m * (rounded * s - x)


def inputs(shape, seed=0):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return x.to(memory_format=torch.channels_last) if x.ndim == 4 else x


@pytest.mark.parametrize("shape", [(6, 5), (3, 4, 5, 5)])
@pytest.mark.parametrize("low", [-1.0, 0.0])
@pytest.mark.parametrize("m", [1.0, 0.3, "drawn"])
def test_value_and_derivatives_are_those_of_the_formula(shape, low, m):
    grid = per_tensor(low, 1.3, 3, False)
    own, x = InputQuantizer(grid), inputs(shape).requires_grad_()
    with torch.no_grad():
        own.sigma.fill_(1.1)
    mix = PrecisionMix(
        0.4 if m == "drawn" else 1 - m, m == "drawn", torch.Generator().manual_seed(5)
    )
    again = PrecisionMix(mix.share, mix.drawn, torch.Generator().manual_seed(5))
    y, wanted = own(x, mix), slow(x, own.sigma, grid, again.quantized(x))
    rounding = relative(6, x.dtype)
    assert_within(y, wanted, rounding * float(x.detach().abs().max()))
    g = inputs(shape, 1)
    for one, other in zip(
        *(torch.autograd.grad(o, (x, own.sigma), g) for o in (y, wanted)), strict=True
    ):
        terms = x.numel() if one.numel() == 1 else 1  # the step's is a sum over all values
        assert_within(
            one, other, terms * rounding * float(g.abs().max() * grid.high.abs().clamp(min=8))
        )
        assert float(other.abs().max()) > 0


def test_without_a_mix_it_is_the_nearest_grid_value():
    grid, x = per_tensor(-1.0, 2.0, 4, False), inputs((50,))
    assert torch.equal(InputQuantizer(grid)(x), grid.nearest(x))


def test_nothing_quantized_is_the_input_itself():
    x = inputs((5,))
    assert (
        InputQuantizer(per_tensor(0.0, 1.0, 4, False))(
            x, PrecisionMix(1.0, True, torch.Generator())
        )
        is x
    )


def test_learned_factor_is_in_the_grid():
    own, x = InputQuantizer(per_tensor(0.0, 1.0, 4, False)), inputs((50,))
    with torch.no_grad():
        own.sigma.fill_(0.8)
    assert torch.equal(own.grid().nearest(x), own(x))
    assert own.grid().levels == 16
