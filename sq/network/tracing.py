"""Images through the network: which layers it calls, in which order, and how many outputs they have."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from sq.core.progress import say
from sq.core.wording import quantity
from sq.errors import SqError
from sq.network import geometry, hooks
from sq.network.forward import forward
from sq.runtime import batching
from sq.types.problem import Layer, Model


@dataclass
class _Calls:
    """The layers that passes have called with at least one position, in the order of their first calls."""

    positions: dict[str, int] = field(default_factory=dict)  # of all calls
    # the first layer that was fed the same tensor
    fed: dict[str, str] = field(default_factory=dict)

    def watch(self, net: nn.Module, every: list[Layer], x: Tensor) -> None:
        """Add the calls of a pass over images `x` (B, ...)."""
        # The first layer by each tensor and version of it. Tensors that the network lets go of are
        # not kept alive.
        first = WeakTensorKeyDictionary()

        def look(name: str, module: nn.Module, given: Tensor) -> None:
            by_version = first.setdefault(given, {})
            self.fed.setdefault(name, by_version.setdefault(given._version, name))

        def count(name: str, module: nn.Module, output: Tensor) -> None:
            if output.numel():  # a router may call an expert that gets nothing
                self.positions[name] = self.positions.get(name, 0) + geometry.positions(
                    module, output
                )

        modules = {layer.name: layer.module for layer in every}
        with torch.no_grad(), hooks.feeding(modules, look), hooks.returning(modules, count):
            forward(net, x)


def settle(model: Model, x: Tensor) -> Model:
    """Return `model` with its layers in the order they are called, their positions, what feeds them, and its ends.

    The first image shows all that most networks have. Layers that it does not call, as where a
    router sends images to experts, are looked for with the other images, and have the mean of their
    positions over all of them, rounded up. Layers that no image calls cannot be quantized here:
    they join `skipped`.

    Parameters
    ----------
    x : images (B, ...), the calibration images of a run

    Raises
    ------
    SqError : no layer that can be quantized is called
    """
    first = _Calls()
    first.watch(model.net, model.layers, x[:1])
    order, positions, fed = list(first.positions), first.positions, first.fed
    missing = [
        layer
        for layer in model.layers
        if layer.name not in positions and _may_be_called(layer.module)
    ]
    if missing and len(x) > 1:
        found = _look_further(model, x, order, missing)
        positions |= {
            name: -(-count // len(x))
            for name, count in found.positions.items()
            if name not in positions
        }
        fed = found.fed | fed
    own = {layer.name: layer for layer in model.layers}
    skipped = [f"{name} (never called)" for name in own if name not in positions]
    if not positions:
        fact = f"no layer of {type(model.net).__name__} can be quantized"
        left = f" ({', '.join([*skipped, *model.skipped][:3])})" if skipped or model.skipped else ""
        raise SqError(
            f"{fact}{left}: choose another model", call=f"{fact}{left}: give another network"
        )
    settled = [replace(own[name], positions=positions[name], fed=fed[name]) for name in order]
    ends = model.ends or (settled[0].name, settled[-1].name)
    return replace(model, layers=settled, skipped=model.skipped + skipped, ends=ends)


def work(model: Model, x: Tensor) -> float:
    """Return the multiply-adds of a layer in a pass over one image `x` (1, ...).

    It is the mean of the layers that the pass calls; 0 if it calls none.
    """
    calls = _Calls()
    calls.watch(model.net, model.layers, x)
    products = [
        layer.weights * calls.positions[layer.name]
        for layer in model.layers
        if layer.name in calls.positions
    ]
    return sum(products) / max(1, len(products))


def _may_be_called(module: nn.Module) -> bool:
    """Tell whether `module` may be called at all: attention takes the weight of its `out_proj` without calling it."""
    return not isinstance(module, nn.modules.linear.NonDynamicallyQuantizableLinear)


def _look_further(model: Model, x: Tensor, order: list[str], missing: list[Layer]) -> _Calls:
    """Return the calls of passes over all images; put layers that are new into `order`, after those called before."""
    say(
        f"not called by the first image: {quantity(missing, 'layer')} "
        f"({', '.join(layer.name for layer in missing[:3])}), looked for with all {quantity(x, 'image')}"
    )
    total = _Calls()
    for part in batching.split(x, None):
        calls = _Calls()
        calls.watch(model.net, model.layers, part)
        place = 0
        for name, count in calls.positions.items():
            total.positions[name] = total.positions.get(name, 0) + count
            total.fed.setdefault(name, calls.fed[name])
            if name not in order:
                order.insert(place, name)
            place = order.index(name) + 1
    return total
