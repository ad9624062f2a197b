"""BatchNorm layers: where they are, their running statistics, and sums over what they are fed."""

from __future__ import annotations

from torch import Tensor, nn

Kinds = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def find(net: nn.Module) -> dict[str, nn.Module]:
    """Return the BatchNorm layers of `net` that use running statistics, by name, each module once."""
    return {n: m for n, m in net.named_modules() if isinstance(m, Kinds) and m.running_mean is not None}


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

    Positions of one image are summed in its own precision: converting first takes several times as long.
    """
    positions = tuple(range(2, x.ndim))
    return (x.sum(positions) if positions else x).double().sum(0)
