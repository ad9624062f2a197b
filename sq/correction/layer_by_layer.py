"""Layer-by-layer correction: the interface of one layer's repair, and a pass over a network."""

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
    """Return the `modules` that a pass of `net` over `x` calls exactly once, and the others' names.

    A layer called twice has two inputs and one set of parameters: it cannot be corrected here.
    """
    calls = dict.fromkeys(modules, 0)

    def count(name: str, module: nn.Module, x: Tensor) -> None:
        calls[name] += 1

    with torch.no_grad(), hooks.feeding(modules, count):
        forward(net, x)
    once, others = {}, []
    for name, module in modules.items():
        if calls[name] == 1:
            once[name] = module
        else:
            others.append(name)
    return once, others


@torch.no_grad()
def outputs(net: nn.Module, x: Tensor, batch_size: int | None) -> Iterator[Tensor]:
    """Yield the outputs of `net` for images `x`, batch by batch."""
    for batch in batching.split(x, batch_size):
        yield forward(net, batch)


def output_error(
    net: nn.Module, targets: Iterable[Tensor], x: Tensor, batch_size: int | None
) -> float:
    """Return ||net(x) - targets||^2 / ||targets||^2; `targets` are the reference's `outputs`."""
    error = size = 0.0
    for output, target in zip(outputs(net, x, batch_size), targets, strict=True):
        error += float((output.double() - target.double()).square().sum())
        size += float(target.double().square().sum())
    return error / size


class Repair(ABC):
    """One layer's correction, based on the layer's inputs or outputs in both networks."""

    # `hooks.feeding` to work on inputs, or `hooks.returning` to work on outputs.
    watching: Callable[[dict[str, nn.Module], See], AbstractContextManager[None]]

    @abstractmethod
    def __init__(self, module: nn.Module, reference: nn.Module):
        """Take the layer of the quantized network, which is to be changed, and the reference's."""

    @staticmethod
    @abstractmethod
    def find(net: nn.Module) -> dict[str, nn.Module]:
        """Return the layers of `net` that can be corrected, by name."""

    @abstractmethod
    def expect(self, tensor: Tensor) -> None:
        """Take the reference's input or output for one batch; all come before `see` is called."""

    @abstractmethod
    def see(self, tensor: Tensor) -> Tensor | None:
        """Take the quantized layer's input or output for the next batch, and correct the layer.

        A repair that works on outputs returns the corrected output; None leaves it as it is.
        """

    @abstractmethod
    def changed(self) -> bool:
        """Return whether the layer differs from the original."""

    @abstractmethod
    def undo(self) -> None:
        """Restore the layer as it was before any correction."""


def repair(
    net: nn.Module, reference: nn.Module, x: Tensor, kind: type[Repair], *, batch_size: int | None
) -> dict[str, Any]:
    """Correct the layers of `net` in place; undo that if the error of the outputs is not lower.

    There is one pass. A layer is corrected when it is called, from all batches so far: later layers
    get the inputs they will have in the end. A second pass would measure all layers together with
    the corrections of the first, and change all of them at once; so would undoing only the
    corrections that do not lower the error of their own layer. Either way layers are corrected for
    inputs that they no longer get, and deep networks get worse (measured: results/LOG.md).

    Returns
    -------
    layers : number of layers measured
    kept : number of layers that differ afterwards
    left_alone : layers not called exactly once in a pass
    error_before, error_after : relative squared error of the outputs on `x`
    """
    modules, left_alone = called_once(net, kind.find(net), x[:1])
    references = {name: reference.get_submodule(name) for name in modules}
    repairs = {}
    for name, module in modules.items():
        repairs[name] = _MatchedRepair(kind(module, references[name]))
    targets = _expect(reference, references, x, kind, repairs, batch_size)
    error_before = output_error(net, targets, x, batch_size)
    _correct(net, modules, x, kind, repairs, batch_size)
    error_after = output_error(net, targets, x, batch_size)
    if not error_after < error_before:  # also if it is NaN
        error_after = error_before
        for matched in repairs.values():
            matched.repair.undo()
    different = [name for name, matched in repairs.items() if matched.differs]
    return {
        "layers": len(modules) - len(different),
        "kept": sum(matched.repair.changed() for matched in repairs.values()),
        "left_alone": left_alone + different,
        "error_before": error_before,
        "error_after": error_after,
    }


def _expect(
    reference: nn.Module,
    modules: dict[str, nn.Module],
    x: Tensor,
    kind: type[Repair],
    repairs: dict[str, _MatchedRepair],
    batch_size: int | None,
) -> list[Tensor]:
    """Run the reference, whose layers the repairs watch, and return its outputs by batch."""
    batch = 0
    targets = []

    def expect(name: str, module: nn.Module, tensor: Tensor) -> None:
        # Detached, because a forward may turn gradients on.
        repairs[name].expect(batch, tensor.detach())

    with kind.watching(modules, expect):
        for output in outputs(reference, x, batch_size):
            targets.append(output)
            batch += 1
    return targets


def _correct(
    net: nn.Module,
    modules: dict[str, nn.Module],
    x: Tensor,
    kind: type[Repair],
    repairs: dict[str, _MatchedRepair],
    batch_size: int | None,
) -> None:
    """Run the quantized network; repairs correct its layers on the way."""
    batch = 0

    def see(name: str, module: nn.Module, tensor: Tensor) -> Tensor | None:
        return repairs[name].see(batch, tensor.detach())

    with kind.watching(modules, see):
        for _ in outputs(net, x, batch_size):
            batch += 1
    for matched in repairs.values():
        matched.end()


class _MatchedRepair:
    """A repair as long as both networks call the layer alike: once a batch, with equal shapes.

    After quantization a router may send images to other experts. The inputs of such a layer cannot
    be compared between the networks: it is left alone.
    """

    def __init__(self, repair: Repair):
        self.repair = repair
        self.differs = False
        # Batch and shape of the reference's calls that the quantized layer has not had yet.
        self._expected: list[tuple[int, torch.Size]] = []

    def expect(self, batch: int, tensor: Tensor) -> None:
        """Take the reference's input or output for batch number `batch`."""
        self.differs |= bool(self._expected) and self._expected[-1][0] == batch
        self._expected.append((batch, tensor.shape))
        if tensor.numel():
            self.repair.expect(tensor)

    def see(self, batch: int, tensor: Tensor) -> Tensor | None:
        """Take the quantized layer's input or output; return the corrected output, or None."""
        if not self.differs:
            expected = self._expected.pop(0) if self._expected else None
            if expected != (batch, tensor.shape):
                self._give_up()
        if self.differs or not tensor.numel():  # a router may call an expert without images
            return None
        return self.repair.see(tensor)

    def end(self) -> None:
        """Check that the quantized layer was called as often as the reference's."""
        if self._expected and not self.differs:
            self._give_up()

    def _give_up(self) -> None:
        self.differs = True
        self.repair.undo()
