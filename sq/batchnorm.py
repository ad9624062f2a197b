"""What corrections share: BatchNorm layers, hooks on layers, the error of a network's outputs, and the rounds.

`sq.fold` uses the hooks too.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from sq import images

See = Callable[[str, nn.Module, Tensor], Any]
Kinds = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def find(net: nn.Module) -> dict[str, nn.Module]:
    """Return the BatchNorm layers of `net` that use running statistics, by name, each module once."""
    return {n: m for n, m in net.named_modules() if isinstance(m, Kinds) and m.running_mean is not None}


def called_once(net: nn.Module, modules: dict[str, nn.Module], x: Tensor) -> tuple[dict[str, nn.Module], list[str]]:
    """Return those of `modules` that one pass of `net` over `x` calls exactly once, and the names of the others.

    A layer called twice has two inputs and one set of parameters: no correction here fits it.
    """
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


def total(x: Tensor) -> Tensor:
    """Return (C,) float64: the sum over images and positions of `x` (B, C, ...).

    Positions of one image are summed in its own precision: converting first takes several times as long.
    """
    positions = tuple(range(2, x.ndim))
    return (x.sum(positions) if positions else x).double().sum(0)


@contextmanager
def feeding(modules: dict[str, nn.Module], see: See) -> Iterator[None]:
    """Call ``see(name, module, x)`` before each of `modules` runs on x, while the context lasts."""

    def watch(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple) -> None:
            see(name, module, args[0])

        return hook

    with ExitStack() as hooks:
        for name, module in modules.items():
            hooks.callback(module.register_forward_pre_hook(watch(name)).remove)
        yield


@contextmanager
def returning(modules: dict[str, nn.Module], see: See) -> Iterator[None]:
    """Call ``see(name, module, y)`` after each of `modules` has returned y; what `see` returns, if any, replaces y."""

    def watch(name: str) -> Callable[..., Any]:
        return lambda module, args, y: see(name, module, y)

    with ExitStack() as hooks:
        for name, module in modules.items():
            hooks.callback(module.register_forward_hook(watch(name)).remove)
        yield


def logit_error(net: nn.Module, reference: nn.Module, x: Tensor, batch_size: int | None) -> float:
    """Return ||net(x) - reference(x)||^2 / ||reference(x)||^2 over all images `x`."""
    error, size = 0.0, 0.0
    with torch.no_grad():
        for part in images.split(x, batch_size):
            wanted = reference(part).double()
            error += float((net(part).double() - wanted).square().sum())
            size += float(wanted.square().sum())
    return error / size


class Repair(ABC):
    """One layer's correction: measured in both networks at once, kept where it lowers the error of that layer."""

    watching: Callable[[dict[str, nn.Module], See], AbstractContextManager[None]]  # `feeding` or `returning`

    @abstractmethod
    def __init__(self, ours: nn.Module, theirs: nn.Module):
        """Take the layer of the quantized network, which will be changed, and that of the reference."""

    @staticmethod
    @abstractmethod
    def find(net: nn.Module) -> dict[str, nn.Module]:
        """Return the layers of `net` that such a correction fits, by name."""

    @abstractmethod
    def expect(self, tensor: Tensor) -> None:
        """Take what the reference's layer is fed or returns for the next batch."""

    @abstractmethod
    def see(self, tensor: Tensor, at_once: bool) -> Tensor | None:
        """Take what our layer is fed or returns for that batch; with `at_once`, correct it by what is known so far."""

    @abstractmethod
    def settle(self) -> bool:
        """Correct the layer if that lowers its error, else leave it as it was; say which, and start measuring anew."""

    @abstractmethod
    def undo(self) -> None:
        """Leave the layer as it was before any correction."""


def repair(
    net: nn.Module, reference: nn.Module, x: Tensor, kind: type[Repair], *, batch_size: int | None, rounds: int
) -> dict[str, Any]:
    """Correct the layers of `net` that `kind` fits, in place, each where that lowers the error of its output.

    In the first round a layer is corrected as soon as it is met, from what was seen so far, so that later layers
    see nearly what they will see; in the others the corrections of the round before stay in force. If all
    corrections together do not lower the error of the network's outputs, none is kept.

    Returns
    -------
    layers : layers measured; kept : corrections kept; left_alone : layers not called exactly once a pass;
        error_before, error_after : relative squared error of the outputs, on `x`
    """
    ours, alone = called_once(net, kind.find(net), x[:1])
    theirs = {name: reference.get_submodule(name) for name in ours}
    repairs = {name: kind(module, theirs[name]) for name, module in ours.items()}
    before = logit_error(net, reference, x, batch_size)
    kept = 0
    for number in range(rounds):

        def see(name: str, module: nn.Module, tensor: Tensor, at_once: bool = number == 0) -> Tensor | None:
            return repairs[name].see(tensor, at_once)

        with torch.no_grad():
            for part in images.split(x, batch_size):
                with kind.watching(theirs, lambda name, _, tensor: repairs[name].expect(tensor)):
                    reference(part)
                with kind.watching(ours, see):
                    net(part)
            kept = sum([one.settle() for one in repairs.values()])
    after = logit_error(net, reference, x, batch_size)
    if not after < before:
        for one in repairs.values():
            one.undo()
        kept, after = 0, before
    return {"layers": len(ours), "kept": kept, "left_alone": alone, "error_before": before, "error_after": after}
