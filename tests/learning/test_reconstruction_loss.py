import pytest
import torch

from sq.learning.reconstruction_loss import squares


@pytest.mark.parametrize("shape", [(3, 4), (3, 4, 5, 5), (3, 4, 7)])
@pytest.mark.parametrize("elementwise", [False, True])
def test_sum_over_channels_mean_over_images_and_positions(shape, elementwise):
    torch.manual_seed(0)
    y, wanted = torch.randn(shape, requires_grad=True), torch.randn(shape)
    weight = torch.rand(shape if elementwise else shape[0])
    shaped = weight if elementwise else weight.view(-1, *[1] * (len(shape) - 1))
    squared = (
        (shaped * (y - wanted).square()).flatten(2)
        if len(shape) > 2
        else (shaped * (y - wanted).square())
    )
    plain = squared.sum(1).mean()
    made = squares(y, wanted, weight, shape[1])
    assert torch.allclose(made, plain)
    ours, theirs = (torch.autograd.grad(3 * loss, y)[0] for loss in (made, plain))
    assert torch.allclose(ours, theirs, atol=1e-6)
    assert float(theirs.abs().max()) > 0


@pytest.mark.parametrize("shape", [(3, 7, 4), (3, 5, 6, 4)])
@pytest.mark.parametrize("elementwise", [False, True])
def test_channels_on_the_last_axis_are_summed_over_too(shape, elementwise):
    torch.manual_seed(0)
    y, wanted = torch.randn(shape), torch.randn(shape)
    weight = torch.rand(shape if elementwise else shape[0])
    made = squares(y, wanted, weight, 4)
    second = (t.movedim(-1, 1) if t.ndim > 1 else t for t in (y, wanted, weight))
    assert torch.allclose(made, squares(*second, 4))
    shaped = weight if elementwise else weight.view(-1, *[1] * (len(shape) - 1))
    assert torch.allclose(made, (shaped * (y - wanted).square()).sum(-1).mean())


def test_parts_of_one_image_have_its_weight():
    torch.manual_seed(0)
    y, wanted, weight = torch.randn(6, 4), torch.randn(6, 4), torch.rand(3)
    made = squares(y, wanted, weight, 4)
    assert torch.allclose(made, squares(y.view(3, 2, 4), wanted.view(3, 2, 4), weight, 4))
