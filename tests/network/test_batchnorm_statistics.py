"""BatchNorm statistics: how far inputs are from them."""

import pytest
import torch
from torch import nn

from sq.network import batchnorm_statistics


def module(mean=(1.0, -2.0), variance=(4.0, 9.0), eps=0.0):
    own = nn.BatchNorm2d(2, eps=eps)
    batchnorm_statistics.set_running(own, torch.tensor(mean), torch.tensor(variance))
    return own.eval()


def inputs(mean, deviation):
    """Return (3, 2, 4, 4) whose channels have exactly these means and deviations over images and positions."""
    x = torch.randn(3, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    variance, middle = torch.var_mean(x, (0, 2, 3), correction=0, keepdim=True)
    return (x - middle) / variance.sqrt() * torch.tensor(deviation).view(1, 2, 1, 1) + torch.tensor(
        mean
    ).view(1, 2, 1, 1)


def test_inputs_as_in_training_are_at_no_distance():
    assert float(
        batchnorm_statistics.distance(module(), inputs((1.0, -2.0), (2.0, 3.0)))
    ) == pytest.approx(0, abs=1e-10)


def test_distance_is_in_units_of_the_running_statistics():
    # Means 1 of 2 and 3 of 3 deviations off: 1/4 and 1; deviations twice and half: 1 and 1/4.
    found = batchnorm_statistics.distance(module(), inputs((2.0, 1.0), (4.0, 1.5)))
    assert float(found) == pytest.approx(((1 / 4 + 1) + (1 + 1 / 4)) / 2, rel=1e-5)


def test_eps_is_added_to_both_variances():
    found = batchnorm_statistics.distance(
        module(variance=(3.0, 8.0), eps=1.0), inputs((1.0, -2.0), (15.0**0.5, 8.0**0.5))
    )
    assert float(found) == pytest.approx(1 / 2, rel=1e-5)


def test_seen_is_the_mean_over_layers_and_what_the_network_makes():
    net = nn.Sequential(module(), nn.Identity(), module((0.0, 0.0), (1.0, 1.0)))
    x = inputs((2.0, 1.0), (4.0, 1.5))
    outputs, distance = batchnorm_statistics.forward_with_distance(net, x)
    assert torch.equal(outputs, net(x))
    own = [
        batchnorm_statistics.distance(net[0], x),
        batchnorm_statistics.distance(net[2], net[0](x)),
    ]
    assert float(distance.detach()) == pytest.approx(float(sum(own).detach()) / 2)
    assert batchnorm_statistics.forward_with_distance(net, x.requires_grad_())[1].requires_grad
