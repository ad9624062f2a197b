"""BatchNorm layers: where they are, their running statistics, and sums over what they are fed."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sq.errors import SqError
from sq.network import hooks
from sq.network.forward import forward

Kinds = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def find(net: nn.Module) -> dict[str, nn.Module]:
    """Return the BatchNorm layers of `net` that use running statistics, by name, each module once."""
    return {
        n: m for n, m in net.named_modules() if isinstance(m, Kinds) and m.running_mean is not None
    }


def running(module: nn.Module) -> tuple[Tensor, Tensor]:
    """Return the running mean and variance, (C,) each, as they stand in the module."""
    mean, variance = module.running_mean, module.running_var
    assert isinstance(mean, Tensor)
    assert isinstance(variance, Tensor)
    return mean, variance


def set_running(module: nn.Module, mean: Tensor, variance: Tensor) -> None:
    """Overwrite the running statistics of `module` with (C,) tensors."""
    own = running(module)
    own[0].copy_(mean)
    own[1].copy_(variance)


def channels(x: Tensor) -> Tensor:
    """Return `x` (B, C, ...) as (C, B * ...), float64."""
    return x.transpose(0, 1).flatten(1).double()


def total(x: Tensor) -> Tensor:
    """Return (C,) float64: the sum over images and positions of `x` (B, C, ...).

    Positions of one image are summed in its own precision: converting first takes several times as
    long.
    """
    positions = tuple(range(2, x.ndim))
    return (x.sum(positions) if positions else x).double().sum(0)


def distance(module: nn.Module, x: Tensor) -> Tensor:
    """Return how far the statistics of `x` (B, C, ...) are from the running ones, in units of those; differentiable.

    Mean over channels of (mean - running mean)^2 / variance + (deviation / running deviation -
    1)^2, where the running variance has `eps` added, as in the module itself.
    """
    over = [0, *range(2, x.ndim)]
    variance, mean = torch.var_mean(x, over, correction=0)
    eps = float(module.eps)  # type: ignore[arg-type]
    expected, wide = (t.to(x.dtype) for t in running(module))
    deviation = (wide + eps).sqrt()
    return (
        ((mean - expected) / deviation).square()
        + ((variance + eps).sqrt() / deviation - 1).square()
    ).mean()


def seen(net: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return what `net`, which has BatchNorm layers, makes of `x`, and the mean `distance` of what they are fed."""
    found: list[Tensor] = []
    with hooks.feeding(find(net), lambda name, module, own: found.append(distance(module, own))):
        outputs = forward(net, x)
    return outputs, torch.stack(found).mean()


def check(net: nn.Module, what: str) -> None:
    """Raise an `SqError` if `net` has no BatchNorm layers, which `what` relies on."""
    if not find(net):
        raise SqError(
            f"{what} matches statistics of BatchNorm layers, and {type(net).__name__} has none (folded, or never "
            "there): choose calibration=generated calibration.bn_weight=0, or calibration=subset"
        )
