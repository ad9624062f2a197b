"""Networks as ONNX models: as they are, or with integers for weights and quantized inputs.

A model is exported once for a network's structure, then given codes as often as one likes. It holds
what it computes with and no more: what PyTorch's exporter notes beside the nodes, paths of its
source files among it, is left out.
"""

from __future__ import annotations

import io
import re
import warnings
from collections import Counter
from collections.abc import Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from sq.activation import insertion
from sq.config import requirements
from sq.errors import SqError, one_line
from sq.network import hooks, residual_adds
from sq.network.copies import copied
from sq.network.forward import forward
from sq.network.weight_swap import weight_users
from sq.types.problem import Grid, Layer, Model, Problem, QuantizedLayer, QuantizedModel

BATCH = "batch"  # the axis of images in a file
OPSET = 21  # the first with integers of 4 bits
SMALL = 64  # bytes of constants that are computed beforehand: shapes, never codes


@dataclass(frozen=True)
class Frame:
    """A network as an ONNX model without anything quantized, and what one needs to quantize it there."""

    model: Any  # onnx.ModelProto
    shapes: dict[str, tuple[int, ...]]  # of layers' weights
    calls: Counter[str]  # of layers, in one pass
    additions: int  # of feature maps, in one pass

    def plain(self) -> Any:
        """Return the model in full precision."""
        return _slim(duplicate(self.model))

    def quantized(self, own: Parts, least: int = 4, unsigned: bool = False) -> Any:
        """Return the model with codes and grids in place; see `sq/export/onnx_qdq.py` for the rest and errors.

        Raises
        ------
        SqError : what ONNX cannot hold, named, with the format that can
        """
        from sq.export import onnx_qdq

        made = duplicate(self.model)
        for name, (codes, grid) in own.weights.items():
            onnx_qdq.put_weight(made.graph, name, codes, grid, self.shapes[name], least, unsigned)
        for name, grid in own.inputs.items():
            onnx_qdq.put_input(made.graph, name, grid, self.calls[name])
        if own.operands:
            onnx_qdq.put_operands(made.graph, own.operands, self.additions)
        return _slim(made)


@dataclass(frozen=True)
class Neighbours:
    """What stands next to a layer: nothing that is in full precision, before (`codes_in`) and after (`codes_out`)."""

    codes_in: bool
    codes_out: bool


@dataclass(frozen=True)
class Parts:
    """What of a network is quantized: codes and grids of weights, grids of inputs and of operands of additions."""

    weights: Mapping[str, tuple[Tensor, Grid]]
    inputs: Mapping[str, Grid] = field(default_factory=dict)
    operands: Mapping[str, Grid] = field(default_factory=dict)

    def saturating(self) -> list[str]:
        """Return which layers' sums of products saturate where a processor has no VNNI, if stored signed."""
        from sq.export import onnx_qdq

        return [
            name
            for name, own in self.weights.items()
            if name in self.inputs and onnx_qdq.saturating(*own)
        ]


def need() -> None:
    """Raise an `SqError` unless all is here that writes ONNX and runs it."""
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise SqError(f"ONNX: {error}: {requirements.EXPORT}") from error


def parts(made: QuantizedModel, problem: Problem) -> Parts:
    """Return what is quantized of a network that a run has made."""
    given: dict[str, QuantizedLayer] = {
        layer.name: made.layers[layer.name] for layer in problem.model.layers
    }
    weights = {
        name: (own.codes.cpu(), own.grid.map(torch.Tensor.cpu)) for name, own in given.items()
    }
    return Parts(weights, insertion.attached(made.net), residual_adds.attached(made.net))


def frame(net: nn.Module, model: Model, layers: list[Layer], x: Tensor) -> Frame:
    """Return a network's frame, for any number of images.

    Parameters
    ----------
    net : has the modules of `model`'s network, by the same names; grids attached to it are left out
    layers : of `model`, that are to be quantized
    x : (B, ...), images

    Raises
    ------
    SqError : PyTorch cannot export it; layers share their weight
    """
    plain = copied(net).cpu().eval()
    insertion.detach(plain)
    x = residual_adds.two_images(x[:2].cpu())  # one image would be taken for a constant
    if shared := [layer.name for layer in layers if len(weight_users(model.net, layer)) > 1]:
        raise SqError(f"{shared[0]} shares its weight, which ONNX cannot hold: use export=packed")
    shapes = {layer.name: tuple(weight(plain, layer.name).shape) for layer in layers}
    calls, additions = _passed(plain, x, list(shapes))
    return Frame(exported(plain, x), shapes, calls, additions)


def exported(net: nn.Module, x: Tensor) -> Any:
    """Return the ONNX model of a network on the CPU as it is, for any number of images.

    Raises
    ------
    SqError : PyTorch cannot export it
    """
    batch = ({0: torch.export.Dim.DYNAMIC},)
    how = {"dynamo": True, "opset_version": OPSET, "optimize": False, "verbose": False}
    names = {"input_names": ["images"], "output_names": ["outputs"]}
    copying = net.register_forward_pre_hook(_copy_input) if _overwrites(net, x) else None
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()), torch.no_grad():
            warnings.simplefilter("ignore")
            made = torch.onnx.export(net, (x,), dynamic_shapes=batch, **how, **names)  # type: ignore[arg-type]
    except Exception as error:  # whatever its exporter raises
        raise SqError(
            f"PyTorch cannot write {type(net).__name__} as ONNX ({one_line(error)[:200]}): use export=packed"
        ) from error
    finally:
        if copying is not None:
            copying.remove()
    assert made is not None
    return _named(_tidy(made.model_proto))


def _overwrites(net: nn.Module, x: Tensor) -> bool:
    """Tell whether `net` changes its input in place, which would be another output of an ONNX model."""
    given = x.clone()
    with torch.no_grad():
        net.forward(given)
    return given._version > 0


def _copy_input(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    return args[0].clone(), *args[1:]


def _named(model: Any) -> Any:
    """Return the model with its axis of images called `BATCH`, not by a number of the exporter's."""
    axes = model.graph.input[0].type.tensor_type.shape.dim
    symbol = axes[0].dim_param if len(axes) else ""
    for value in (
        (*model.graph.input, *model.graph.output, *model.graph.value_info) if symbol else ()
    ):
        for axis in value.type.tensor_type.shape.dim:
            if axis.dim_param:  # to set it would take away a size
                axis.dim_param = re.sub(rf"\b{re.escape(symbol)}\b", BATCH, axis.dim_param)
    return model


def _tidy(model: Any) -> Any:
    """Return the model with shapes computed beforehand; weights, and BatchNorm beside them, stay as they are."""
    from onnxscript import ir, optimizer

    made = ir.from_proto(model)
    weights = {tensor.name for tensor in model.graph.initializer}

    def may_fold(node: ir.Node) -> bool | None:
        return (
            False if any(own is not None and own.name in weights for own in node.inputs) else None
        )

    optimizer.fold_constants(
        made, input_size_limit=SMALL, output_size_limit=SMALL, should_fold=may_fold
    )
    optimizer.remove_unused_nodes(made)
    return ir.to_proto(made)


def _slim(model: Any) -> Any:
    """Return the model without what its nodes do not need: where they came from, and shapes that follow."""
    del model.graph.value_info[:]
    parts = (model.graph.node, model.graph.initializer, model.graph.input, model.graph.output)
    for own in (model.graph, *(one for every in parts for one in every)):
        del own.metadata_props[:]
        own.doc_string = ""
    return model


def duplicate(model: Any) -> Any:
    """Return a copy of a model."""
    made = type(model)()
    made.CopyFrom(model)
    return made


def _passed(net: nn.Module, x: Tensor, names: list[str]) -> tuple[Counter[str], int]:
    """Return how often each layer is called in a pass, and how many additions the pass makes."""
    found: Counter[str] = Counter()
    modules = {name: net.get_submodule(name) for name in names}
    seen = hooks.feeding(modules, lambda name, module, fed: found.update([name]))
    with torch.no_grad(), seen, residual_adds.Adds(lambda name, own: own) as made:
        forward(net, x)
    return found, made.number


def weight(net: nn.Module, layer: str) -> Tensor:
    """Return what a layer of `net`, "" for itself, computes with."""
    own = net.get_submodule(layer).weight
    assert isinstance(own, Tensor)
    return own
