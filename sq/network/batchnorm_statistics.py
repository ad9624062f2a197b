"""BatchNorm layers of a network: their running statistics, and statistics of their inputs."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sq.errors import SqError
from sq.network import hooks
from sq.network.forward import forward

BATCHNORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def find(net: nn.Module) -> dict[str, nn.Module]:
    """Return the BatchNorm layers of `net` with running statistics, by name, each module once."""
    return {
        name: module
        for name, module in net.named_modules()
        if isinstance(module, BATCHNORMS) and module.running_mean is not None
    }


def running(module: nn.Module) -> tuple[Tensor, Tensor]:
    """Return the running mean and variance, (C,) each: the module's own tensors, no copies."""
    mean, variance = module.running_mean, module.running_var
    assert isinstance(mean, Tensor)
    assert isinstance(variance, Tensor)
    return mean, variance


def set_running(module: nn.Module, mean: Tensor, variance: Tensor) -> None:
    """Overwrite the running statistics of `module` with (C,) tensors."""
    running_mean, running_variance = running(module)
    running_mean.copy_(mean)
    running_variance.copy_(variance)


def by_channel(x: Tensor) -> Tensor:
    """Return `x` (B, C, ...) as (C, B * ...), float64."""
    return x.transpose(0, 1).flatten(1).double()


def channel_sums(x: Tensor) -> Tensor:
    """Return (C,) float64: the sum over images and positions of `x` (B, C, ...).

    Positions of one image are summed in the precision of `x`: converting them to float64 first
    takes several times as long.
    """
    positions = tuple(range(2, x.ndim))
    if positions:  # `sum` of no axes would sum over all of them
        x = x.sum(positions)
    return x.double().sum(0)


def distance(module: nn.Module, x: Tensor) -> Tensor:
    """Return the relative distance of the statistics of `x` (B, C, ...) from the running ones.

    It is the mean over channels of (mean - running mean)^2 / variance + (deviation / running
    deviation - 1)^2. The running variance has `eps` added, as in the module itself. The distance is
    differentiable by `x`.
    """
    axes = [0, *range(2, x.ndim)]  # all but the channels
    variance, mean = torch.var_mean(x, axes, correction=0)
    eps = float(module.eps)  # type: ignore[arg-type]
    running_mean, running_variance = running(module)
    running_mean, running_variance = running_mean.to(x.dtype), running_variance.to(x.dtype)
    deviation = (running_variance + eps).sqrt()
    mean_term = ((mean - running_mean) / deviation).square()
    deviation_term = ((variance + eps).sqrt() / deviation - 1).square()
    return (mean_term + deviation_term).mean()


def forward_with_distance(net: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the outputs of `net` for `x`, and the mean `distance` over its BatchNorm layers."""
    distances: list[Tensor] = []

    def measure(name: str, module: nn.Module, layer_input: Tensor) -> None:
        distances.append(distance(module, layer_input))

    with hooks.feeding(find(net), measure):
        outputs = forward(net, x)
    return outputs, torch.stack(distances).mean()


def require(net: nn.Module, setting: str) -> None:
    """Raise an `SqError` if `net` has no BatchNorm layers, on which `setting` relies."""
    if not find(net):
        raise SqError(
            f"{setting} matches statistics of BatchNorm layers, and {type(net).__name__} has none "
            "(they were folded, or it never had any): choose calibration=generated "
            "calibration.bn_weight=0, or calibration=subset"
        )
