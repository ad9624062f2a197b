"""PyTorch's exporter takes seconds for each network: one export of a structure, given the numbers of each network."""

from __future__ import annotations

from typing import Any

from onnx import numpy_helper
from torch import Tensor, nn

from sq.export import onnx_export

EXPORTER = onnx_export.exported
EXPORTS: dict[Any, Any] = {}
PLAIN = (bool, int, float, str, tuple, type(None))


def exported(net: nn.Module, x: Tensor) -> Any:
    """Return what `onnx_export.exported` returns.

    Networks are of one structure if their modules are of the same classes, with the same plain
    attributes, and their tensors of the same shapes.
    """
    state = net.state_dict()
    structure = (
        repr(net),
        tuple(x.shape),
        tuple((name, tuple(value.shape)) for name, value in state.items()),
        tuple((name, type(module), _attributes(module)) for name, module in net.named_modules()),
    )
    if structure not in EXPORTS:
        EXPORTS[structure] = EXPORTER(net, x)
    model = onnx_export.duplicate(EXPORTS[structure])
    for tensor in model.graph.initializer:
        if tensor.name in state:
            tensor.raw_data = numpy_helper.from_array(
                state[tensor.name].contiguous().numpy()
            ).raw_data
    return model


def _attributes(module: nn.Module) -> str:
    """Return the plain attributes of a module; those of PyTorch's own are in its `repr`."""
    plain = {name: value for name, value in vars(module).items() if isinstance(value, PLAIN)}
    return repr(sorted(plain.items()))
