"""What corrections share: one layer's repair, all of them over a network, and the error that decides."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from sq.network import hooks
from sq.network.forward import forward
from sq.network.hooks import See
from sq.runtime import batching


def called_once(
    net: nn.Module, modules: dict[str, nn.Module], x: Tensor
) -> tuple[dict[str, nn.Module], list[str]]:
    """Return those of `modules` that one pass of `net` over `x` calls exactly once, and the names of the others.

    A layer called twice has two inputs and one set of parameters: no correction here fits it.
    """
    calls = dict.fromkeys(modules, 0)

    def count(name: str, module: nn.Module, x: Tensor) -> None:
        calls[name] += 1

    with torch.no_grad(), hooks.feeding(modules, count):
        forward(net, x)
    return {n: m for n, m in modules.items() if calls[n] == 1}, [
        n for n in modules if calls[n] != 1
    ]


@torch.no_grad()
def outputs(net: nn.Module, x: Tensor, batch_size: int | None) -> Iterator[Tensor]:
    """Yield what `net` makes of the images `x`, batch by batch."""
    for part in batching.split(x, batch_size):
        yield forward(net, part)


def output_error(
    net: nn.Module, wanted: Iterable[Tensor], x: Tensor, batch_size: int | None
) -> float:
    """Return ||net(x) - wanted||^2 / ||wanted||^2 over all images `x`; `wanted` are the reference's `outputs`."""
    error = size = 0.0
    for made, target in zip(outputs(net, x, batch_size), wanted, strict=True):
        error += float((made.double() - target.double()).square().sum())
        size += float(target.double().square().sum())
    return error / size


class Repair(ABC):
    """One layer's correction, by what the layer is fed or returns in both networks."""

    # `hooks.feeding` or `returning`
    watching: Callable[[dict[str, nn.Module], See], AbstractContextManager[None]]

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

    One pass: a layer is corrected as it is met, by what was seen so far, so that later layers see
    what they will see in the end. A second pass would measure all layers beside the corrections of
    the first and change all of them at once; so would dropping those that do not lower their own
    layer's error. Either way layers are corrected for inputs they no longer get, and deep networks
    lose by it (measured: results/LOG.md).

    Returns
    -------
    layers : layers measured; kept : those that differ afterwards; left_alone : layers not called
    exactly once a
        pass; error_before, error_after : relative squared error of the outputs, on `x`
    """
    ours, alone = called_once(net, kind.find(net), x[:1])
    theirs = {name: reference.get_submodule(name) for name in ours}
    pairs = {name: _Pair(kind(module, theirs[name])) for name, module in ours.items()}
    batch, wanted = 0, []

    def expect(name: str, module: nn.Module, tensor: Tensor) -> None:
        pairs[name].expect(batch, tensor.detach())  # a forward may turn gradients on

    def see(name: str, module: nn.Module, tensor: Tensor) -> Tensor | None:
        return pairs[name].see(batch, tensor.detach())

    with kind.watching(theirs, expect):
        for output in outputs(reference, x, batch_size):
            wanted.append(output)
            batch += 1
    before = output_error(net, wanted, x, batch_size)
    batch = 0
    with kind.watching(ours, see):
        for _ in outputs(net, x, batch_size):
            batch += 1  # hooks do the rest
    for pair in pairs.values():
        pair.end()
    after = output_error(net, wanted, x, batch_size)
    if not after < before:
        after = before
        for pair in pairs.values():
            pair.repair.undo()
    kept = sum(pair.repair.changed() for pair in pairs.values())
    alone += [name for name, pair in pairs.items() if pair.differs]
    return {
        "layers": len(ours) - sum(pair.differs for pair in pairs.values()),
        "kept": kept,
        "left_alone": alone,
        "error_before": before,
        "error_after": after,
    }


class _Pair:
    """A repair, as long as both networks call the layer alike: once a batch, with tensors of one shape.

    A router may send images to other experts once weights are quantized. What such a layer sees in
    both networks cannot be compared: it is left alone.
    """

    def __init__(self, repair: Repair):
        self.repair = repair
        self.differs = False
        # of the reference's calls not yet seen: batch and shape
        self._expected: list[tuple[int, torch.Size]] = []

    def expect(self, batch: int, tensor: Tensor) -> None:
        """Take what the reference's layer is fed or returns for batch number `batch`."""
        self.differs |= bool(self._expected) and self._expected[-1][0] == batch
        self._expected.append((batch, tensor.shape))
        if tensor.numel():
            self.repair.expect(tensor)

    def see(self, batch: int, tensor: Tensor) -> Tensor | None:
        """Take what our layer is fed or returns; return what it returns now, None for the same."""
        if not self.differs and not (
            self._expected and self._expected.pop(0) == (batch, tensor.shape)
        ):
            self._leave()
        return self.repair.see(tensor) if tensor.numel() and not self.differs else None

    def end(self) -> None:
        """See that all of the reference's calls had a counterpart."""
        if self._expected and not self.differs:
            self._leave()

    def _leave(self) -> None:
        self.differs = True
        self.repair.undo()
