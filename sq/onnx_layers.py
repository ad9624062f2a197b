"""Single layers as ONNX models, as they are in a network whose feature maps have the same bits throughout.

Inputs in full precision: floats in, floats out. Quantized inputs: codes in, codes out, so that a runtime with a kernel
of integers has all it needs, and no time is counted for what is between two layers.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from sq import hooks, onnx_model
from sq.knobs import FLOAT
from sq.types import Layer, Model
from sq.uniform import UniformGrid, spanning

Widths = tuple[int, int]  # of weights and of inputs, as they are stored: 4, 8 or 32


@dataclass
class Geometry:
    """What the latency of a layer follows from, and the layers that have it, each as often as it is called so."""

    module: nn.Module
    shape: tuple[int, ...]  # of its input, all images
    layers: list[Layer] = field(default_factory=list)

    def model(self, widths: Widths) -> Any:
        """Return the layer as an ONNX model at these widths, with weights rounded to nearest: one input, one output."""
        if self._plain is None:
            net = nn.Sequential()
            net.add_module("layer", copy.deepcopy(self.module).cpu().eval())
            self._plain = onnx_model.exported(net, torch.zeros(max(2, self.shape[0]), *self.shape[1:]))
        made = onnx_model.duplicate(self._plain)
        if widths != (FLOAT, FLOAT):
            _quantize(made.graph, self.layers[0], widths)
        return made

    _plain: Any = field(default=None, repr=False)


def geometries(model: Model, x: Tensor) -> list[Geometry]:
    """Return how layers are called in a pass over images `x`, and which of them alike."""
    found: dict[tuple[Any, ...], Geometry] = {}
    own = {layer.name: layer for layer in model.layers}

    def see(name: str, module: nn.Module, fed: Tensor) -> None:
        key = _key(module, fed)
        found.setdefault(key, Geometry(module, tuple(fed.shape))).layers.append(own[name])

    with torch.no_grad(), hooks.feeding({name: layer.module for name, layer in own.items()}, see):
        model.net(x)
    return list(found.values())


def fed(widths: Widths, shape: tuple[int, ...]) -> Tensor:
    """Return an input for the model of a layer at these widths."""
    draw = torch.Generator().manual_seed(0)
    if widths[1] == FLOAT:
        return torch.rand(shape, generator=draw)
    return torch.randint(256, shape, generator=draw, dtype=torch.uint8)


def eight(W: Tensor, bits: int = 8) -> tuple[Tensor, UniformGrid]:
    """Return the codes of a weight (G, O, I) rounded to nearest on a symmetric grid of each channel's largest value.

    It is what every tool for 8 bits does at least, and what others are timed against.
    """
    reach = W.abs().amax(2, keepdim=True)
    grid = spanning(-reach, reach, bits, symmetric=True)
    return grid.encode(W), grid


def _key(module: nn.Module, x: Tensor) -> tuple[Any, ...]:
    """Return what tells how long a layer takes."""
    knobs: Mapping[str, Any] = {name: getattr(module, name, None) for name in ("stride", "padding", "dilation")}
    bias = getattr(module, "bias", None) is not None
    own = module.weight
    assert isinstance(own, Tensor)
    return (
        type(module),
        tuple(own.shape),
        getattr(module, "groups", 1),
        *map(str, knobs.values()),
        bias,
        tuple(x.shape),
    )


def _quantize(graph: Any, layer: Layer, widths: Widths) -> None:
    """Put integers of these widths into the graph of a single layer named "layer"."""
    from onnx import TensorProto, helper

    from sq import onnx_graph

    own = layer.module._parameters["weight"]
    assert own is not None
    W = own.detach().cpu().reshape(layer.groups, layer.outputs, layer.inputs)
    codes, grid = eight(W, widths[0])
    onnx_graph.put_weight(graph, "layer", codes, grid, tuple(own.shape))
    if widths[1] == FLOAT:
        return
    onnx_graph.put_input(graph, "layer", spanning(torch.tensor(0.0), torch.tensor(1.0), 8, symmetric=False), 1)
    step = next(node for node in graph.node if node.op_type == "QuantizeLinear")
    given, ends = graph.input[0], list(step.input[1:])
    if step.input[0] == given.name:
        given.name = step.output[0]
        graph.node.remove(step)
    else:  # something stands between, as padding that depends on the size: it is part of the layer
        graph.node.insert(0, helper.make_node("DequantizeLinear", ["codes", *ends], [given.name], name="images.values"))
        given.name = "codes"
    graph.node.append(helper.make_node("QuantizeLinear", [graph.output[0].name, *ends], ["out"], name="out.codes"))
    graph.output[0].name = "out"
    for end in (given, graph.output[0]):
        end.type.tensor_type.elem_type = TensorProto.UINT8
    del graph.value_info[:]
