"""BatchNorm layers, as the corrections see them: where they are, what they are fed, what they would output."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from sq import images

See = Callable[[str, nn.Module, Tensor], None]
Kinds = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def find(net: nn.Module) -> dict[str, nn.Module]:
    """Return the BatchNorm layers of `net` that use running statistics, by name, each module once."""
    return {n: m for n, m in net.named_modules() if isinstance(m, Kinds) and m.running_mean is not None}


def called_once(net: nn.Module, x: Tensor) -> tuple[dict[str, nn.Module], list[str]]:
    """Return the BatchNorm layers that one pass over `x` calls exactly once, and the names of the others.

    A layer called twice has two inputs and one set of statistics: no correction here fits it.
    """
    modules = find(net)
    calls = dict.fromkeys(modules, 0)

    def count(name: str, module: nn.Module, x: Tensor) -> None:
        calls[name] += 1

    with torch.no_grad(), feeding(modules, count):
        net(x)
    return {n: m for n, m in modules.items() if calls[n] == 1}, [n for n in modules if calls[n] != 1]


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


@contextmanager
def feeding(modules: dict[str, nn.Module], see: See) -> Iterator[None]:
    """Call ``see(name, module, x)`` before each of `modules` runs on x, while the context lasts."""

    def watch(name: str, module: nn.Module) -> RemovableHandle:
        return module.register_forward_pre_hook(lambda _, args: see(name, module, args[0]))

    hooks = [watch(name, module) for name, module in modules.items()]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def logit_error(net: nn.Module, reference: nn.Module, x: Tensor, batch_size: int | None) -> float:
    """Return ||net(x) - reference(x)||^2 / ||reference(x)||^2 over all images `x`."""
    error, size = 0.0, 0.0
    with torch.no_grad():
        for part in images.split(x, batch_size):
            wanted = reference(part).double()
            error += float((net(part).double() - wanted).square().sum())
            size += float(wanted.square().sum())
    return error / size
