"""What corrections share: one layer's repair, all of them over a network, and the error that decides."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from sq import hooks, images
from sq.hooks import See
from sq.network.forward import forward


def called_once(net: nn.Module, modules: dict[str, nn.Module], x: Tensor) -> tuple[dict[str, nn.Module], list[str]]:
    """Return those of `modules` that one pass of `net` over `x` calls exactly once, and the names of the others.

    A layer called twice has two inputs and one set of parameters: no correction here fits it.
    """
    calls = dict.fromkeys(modules, 0)

    def count(name: str, module: nn.Module, x: Tensor) -> None:
        calls[name] += 1

    with torch.no_grad(), hooks.feeding(modules, count):
        forward(net, x)
    return {n: m for n, m in modules.items() if calls[n] == 1}, [n for n in modules if calls[n] != 1]


@torch.no_grad()
def outputs(net: nn.Module, x: Tensor, batch_size: int | None) -> Iterator[Tensor]:
    """Yield what `net` makes of the images `x`, batch by batch."""
    for part in images.split(x, batch_size):
        yield forward(net, part)


def output_error(net: nn.Module, wanted: Iterable[Tensor], x: Tensor, batch_size: int | None) -> float:
    """Return ||net(x) - wanted||^2 / ||wanted||^2 over all images `x`; `wanted` are the reference's `outputs`."""
    error = size = 0.0
    for made, target in zip(outputs(net, x, batch_size), wanted, strict=True):
        error += float((made.double() - target.double()).square().sum())
        size += float(target.double().square().sum())
    return error / size


class Repair(ABC):
    """One layer's correction, by what the layer is fed or returns in both networks."""

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
        """Take what the reference's layer is fed or returns: for one batch after the other, before `see` is called."""

    @abstractmethod
    def see(self, tensor: Tensor) -> Tensor | None:
        """Take what our layer is fed or returns for the next batch, and correct the layer by all that was seen so far.

        What a layer has returned is too late to change: then return what it returns now.
        """

    @abstractmethod
    def changed(self) -> bool:
        """Return whether the layer now differs from what it was."""

    @abstractmethod
    def undo(self) -> None:
        """Leave the layer as it was before any correction."""


def repair(
    net: nn.Module, reference: nn.Module, x: Tensor, kind: type[Repair], *, batch_size: int | None
) -> dict[str, Any]:
    """Correct the layers of `net` that `kind` fits, in place; undo that if the network's outputs do not gain by it.

    One pass: a layer is corrected as it is met, by what was seen so far, so that later layers see what they will see
    in the end. A second pass would measure all layers beside the corrections of the first and change all of them at
    once; so would dropping those that do not lower their own layer's error. Either way layers are corrected for
    inputs they no longer get, and deep networks lose by it (measured: results/LOG.md).

    Returns
    -------
    layers : layers measured; kept : those that differ afterwards; left_alone : layers not called exactly once a
        pass; error_before, error_after : relative squared error of the outputs, on `x`
    """
    ours, alone = called_once(net, kind.find(net), x[:1])
    theirs = {name: reference.get_submodule(name) for name in ours}
    repairs = {name: kind(module, theirs[name]) for name, module in ours.items()}
    with kind.watching(theirs, lambda name, _, tensor: repairs[name].expect(tensor)):
        wanted = list(outputs(reference, x, batch_size))
    before = output_error(net, wanted, x, batch_size)
    with kind.watching(ours, lambda name, _, tensor: repairs[name].see(tensor)):
        for _ in outputs(net, x, batch_size):
            pass  # hooks see it all
    after = output_error(net, wanted, x, batch_size)
    if not after < before:
        after = before
        for one in repairs.values():
            one.undo()
    kept = sum(one.changed() for one in repairs.values())
    return {"layers": len(ours), "kept": kept, "left_alone": alone, "error_before": before, "error_after": after}
