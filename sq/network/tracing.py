"""Run images through a network to see which layers it calls, in which order, on what inputs."""

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

SHOWN_NAMES = 3  # in a message


@dataclass
class _Calls:
    """The layers that passes have called with at least one position, in order of first calls."""

    positions: dict[str, int] = field(default_factory=dict)  # of all calls, by layer
    # By layer: the first layer that takes the same tensor as its input, or the layer itself.
    same_input: dict[str, str] = field(default_factory=dict)

    def watch(self, net: nn.Module, layers: list[Layer], x: Tensor) -> None:
        """Add the calls of a pass over images `x` (B, ...)."""
        # By input tensor and its version, which rises when it is changed in place. Weak, so that
        # tensors the network releases are not kept alive.
        first_layers = WeakTensorKeyDictionary()

        def see_input(name: str, module: nn.Module, layer_input: Tensor) -> None:
            by_version = first_layers.setdefault(layer_input, {})
            first = by_version.setdefault(layer_input._version, name)
            self.same_input.setdefault(name, first)

        def see_output(name: str, module: nn.Module, output: Tensor) -> None:
            if output.numel():  # a router may call an expert without any image
                positions = geometry.positions(module, output)
                self.positions[name] = self.positions.get(name, 0) + positions

        modules = {layer.name: layer.module for layer in layers}
        with (
            torch.no_grad(),
            hooks.feeding(modules, see_input),
            hooks.returning(modules, see_output),
        ):
            forward(net, x)


def trace(model: Model, x: Tensor) -> Model:
    """Return `model` with its layers in the order of calls, and with what a pass shows of them.

    That is the number of positions of each layer, the first layer with the same input, and the
    first and last layers if the model does not name them.

    The first image calls all layers of most networks. Layers that it does not call, as in a network
    that routes images to experts, are searched with the other images. Their positions are the mean
    over all images, rounded up. Layers that no image calls cannot be quantized: they join
    `skipped`.

    Parameters
    ----------
    x : the calibration images of a run, (B, ...)

    Raises
    ------
    SqError : no layer that can be quantized is called
    """
    calls = _Calls()
    calls.watch(model.net, model.layers, x[:1])
    order = list(calls.positions)
    positions = dict(calls.positions)
    same_input = calls.same_input
    missing = [
        layer
        for layer in model.layers
        if layer.name not in positions and _may_be_called(layer.module)
    ]
    if missing and len(x) > 1:
        all_calls = _trace_all(model, x, order, missing)
        for name, count in all_calls.positions.items():
            if name not in positions:
                positions[name] = -(-count // len(x))  # rounded up
        same_input = all_calls.same_input | same_input
    layers = {layer.name: layer for layer in model.layers}
    skipped = [f"{name} (never called)" for name in layers if name not in positions]
    if not positions:
        unusable = ", ".join([*skipped, *model.skipped][:SHOWN_NAMES])
        message = f"no layer of {type(model.net).__name__} can be quantized"
        if unusable:
            message += f" ({unusable})"
        raise SqError(f"{message}: choose another model", call=f"{message}: give another network")
    traced = [
        replace(layers[name], positions=positions[name], fed=same_input[name]) for name in order
    ]
    ends = model.ends or (traced[0].name, traced[-1].name)
    return replace(model, layers=traced, skipped=model.skipped + skipped, ends=ends)


def work(model: Model, x: Tensor) -> float:
    """Return the mean multiply-adds of the layers that a pass over one image `x` (1, ...) calls.

    It is 0 if the pass calls none.
    """
    calls = _Calls()
    calls.watch(model.net, model.layers, x)
    total = 0
    for layer in model.layers:
        total += layer.weights * calls.positions.get(layer.name, 0)
    return total / max(1, len(calls.positions))


def _may_be_called(module: nn.Module) -> bool:
    """Return False for `out_proj` of PyTorch's attention, which uses its weight without a call."""
    return not isinstance(module, nn.modules.linear.NonDynamicallyQuantizableLinear)


def _trace_all(model: Model, x: Tensor, order: list[str], missing: list[Layer]) -> _Calls:
    """Return the calls of passes over all images, and insert new layers into `order`.

    A new layer comes right after the one that was called before it.
    """
    names = ", ".join(layer.name for layer in missing[:SHOWN_NAMES])
    say(
        f"not called by the first image: {quantity(missing, 'layer')} ({names}), looked for with "
        f"all {quantity(x, 'image')}"
    )
    total = _Calls()
    for batch in batching.split(x, None):
        calls = _Calls()
        calls.watch(model.net, model.layers, batch)
        next_index = 0
        for name, count in calls.positions.items():
            total.positions[name] = total.positions.get(name, 0) + count
            total.same_input.setdefault(name, calls.same_input[name])
            if name not in order:
                order.insert(next_index, name)
            next_index = order.index(name) + 1
    return total
