"""What corrections share: one layer's repair, rounds of them over a network, and the error that decides."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from sq import hooks, images
from sq.hooks import See


def called_once(net: nn.Module, modules: dict[str, nn.Module], x: Tensor) -> tuple[dict[str, nn.Module], list[str]]:
    """Return those of `modules` that one pass of `net` over `x` calls exactly once, and the names of the others.

    A layer called twice has two inputs and one set of parameters: no correction here fits it.
    """
    calls = dict.fromkeys(modules, 0)

    def count(name: str, module: nn.Module, x: Tensor) -> None:
        calls[name] += 1

    with torch.no_grad(), hooks.feeding(modules, count):
        net(x)
    return {n: m for n, m in modules.items() if calls[n] == 1}, [n for n in modules if calls[n] != 1]


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

    watching: Callable[[dict[str, nn.Module], See], AbstractContextManager[None]]  # `sq.hooks.feeding` or `returning`

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
