"""Networks as ONNX models: in full precision, or with integer weights and quantized inputs.

A network is exported once, and its model can then be given codes any number of times. The model
holds only what it computes with: notes of PyTorch's exporter beside the nodes, such as paths of
source files, are removed.
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
from sq.types.problem import Grid, Layer, Model, Problem, QuantizedModel

BATCH = "batch"  # name of the axis of images
OPSET = 21  # the first with 4-bit integers
MAX_CONSTANT_BYTES = 64  # of constants computed beforehand: shapes, never codes


@dataclass(frozen=True)
class Frame:
    """The ONNX model of a network before quantization, and what is needed to quantize it."""

    model: Any  # onnx.ModelProto
    shapes: dict[str, tuple[int, ...]]  # of layers' weights
    calls: Counter[str]  # of layers, in one pass
    additions: int  # of feature maps, in one pass

    def plain(self) -> Any:
        """Return the model in full precision."""
        return _without_notes(duplicate(self.model))

    def quantized(self, parts: Parts, least: int = 4, unsigned: bool = False) -> Any:
        """Return the model with codes and grids; see `onnx_qdq.put_weight` for the parameters.

        Raises
        ------
        SqError : ONNX cannot hold something, which is named, with the format that can
        """
        from sq.export import onnx_qdq

        model = duplicate(self.model)
        for name, (codes, grid) in parts.weights.items():
            shape = self.shapes[name]
            onnx_qdq.put_weight(model.graph, name, codes, grid, shape, least, unsigned)
        for name, grid in parts.inputs.items():
            onnx_qdq.put_input(model.graph, name, grid, self.calls[name])
        if parts.operands:
            onnx_qdq.put_operands(model.graph, parts.operands, self.additions)
        return _without_notes(model)


@dataclass(frozen=True)
class Neighbours:
    """Whether everything before a layer (`codes_in`) and after it (`codes_out`) is quantized."""

    codes_in: bool
    codes_out: bool


@dataclass(frozen=True)
class Parts:
    """The quantized parts of a network: codes and grids of weights, grids of activations."""

    weights: Mapping[str, tuple[Tensor, Grid]]
    inputs: Mapping[str, Grid] = field(default_factory=dict)
    operands: Mapping[str, Grid] = field(default_factory=dict)  # of additions

    def saturating(self) -> list[str]:
        """Return the layers whose sums of products saturate without VNNI, if stored signed."""
        from sq.export import onnx_qdq

        names: list[str] = []
        for name, (codes, grid) in self.weights.items():
            if name in self.inputs and onnx_qdq.saturating(codes, grid):
                names.append(name)
        return names


def check_packages() -> None:
    """Raise an `SqError` unless the packages that write and run ONNX are installed."""
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise SqError(f"ONNX: {error}: {requirements.EXPORT}") from error


def parts(quantized: QuantizedModel, problem: Problem) -> Parts:
    """Return the quantized parts of the network of a run."""
    weights: dict[str, tuple[Tensor, Grid]] = {}
    for layer in problem.model.layers:
        result = quantized.layers[layer.name]
        weights[layer.name] = (result.codes.cpu(), result.grid.map(torch.Tensor.cpu))
    return Parts(weights, insertion.attached(quantized.net), residual_adds.attached(quantized.net))


def frame(net: nn.Module, model: Model, layers: list[Layer], x: Tensor) -> Frame:
    """Return a network's frame, for any number of images.

    Parameters
    ----------
    net : has the modules of `model`'s network, with the same names; attached grids are left out
    layers : of `model`, that are to be quantized
    x : (B, ...), images

    Raises
    ------
    SqError : PyTorch cannot export it; layers share their weight
    """
    plain = copied(net).cpu().eval()
    insertion.detach(plain)
    # The exporter would take a batch of one image for a constant.
    x = residual_adds.two_images(x[:2].cpu())
    for layer in layers:
        if len(weight_users(model.net, layer)) > 1:
            raise SqError(
                f"{layer.name} shares its weight, which ONNX cannot hold: use export=packed"
            )
    shapes = {layer.name: tuple(weight(plain, layer.name).shape) for layer in layers}
    calls, additions = _count_calls(plain, x, list(shapes))
    return Frame(exported(plain, x), shapes, calls, additions)


def exported(net: nn.Module, x: Tensor) -> Any:
    """Return the ONNX model of a network on the CPU as it is, for any number of images.

    Raises
    ------
    SqError : PyTorch cannot export it
    """
    copying = None
    if _changes_its_input(net, x):
        copying = net.register_forward_pre_hook(_copy_input)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()), torch.no_grad():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                net,
                (x,),
                dynamic_shapes=({0: torch.export.Dim.DYNAMIC},),
                input_names=["images"],
                output_names=["outputs"],
                dynamo=True,
                opset_version=OPSET,
                optimize=False,
                verbose=False,
            )
    except Exception as error:  # the exporter can raise anything
        raise SqError(
            f"PyTorch cannot write {type(net).__name__} as ONNX ({one_line(error)[:200]}): use "
            "export=packed"
        ) from error
    finally:
        if copying is not None:
            copying.remove()
    assert program is not None
    return _with_named_batch(_with_folded_shapes(program.model_proto))


def _changes_its_input(net: nn.Module, x: Tensor) -> bool:
    """Tell whether `net` changes its input in place, which ONNX would make another output."""
    images = x.clone()
    with torch.no_grad():
        net.forward(images)
    return images._version > 0


def _copy_input(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    return args[0].clone(), *args[1:]


def _with_named_batch(model: Any) -> Any:
    """Return the model with its axis of images called `BATCH`, instead of the exporter's symbol."""
    axes = model.graph.input[0].type.tensor_type.shape.dim
    symbol = axes[0].dim_param if len(axes) else ""
    if not symbol:
        return model
    pattern = re.compile(rf"\b{re.escape(symbol)}\b")
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        for axis in value.type.tensor_type.shape.dim:
            if axis.dim_param:  # assigning to an axis with a number would remove that number
                axis.dim_param = pattern.sub(BATCH, axis.dim_param)
    return model


def _with_folded_shapes(proto: Any) -> Any:
    """Return the model with shapes computed beforehand; weights and BatchNorm stay as they are."""
    from onnxscript import ir, optimizer

    model = ir.from_proto(proto)
    weights = {tensor.name for tensor in proto.graph.initializer}

    def may_fold(node: ir.Node) -> bool | None:
        uses_weight = any(value is not None and value.name in weights for value in node.inputs)
        return False if uses_weight else None  # None: as the optimizer decides

    optimizer.fold_constants(
        model,
        input_size_limit=MAX_CONSTANT_BYTES,
        output_size_limit=MAX_CONSTANT_BYTES,
        should_fold=may_fold,
    )
    optimizer.remove_unused_nodes(model)
    return ir.to_proto(model)


def _without_notes(model: Any) -> Any:
    """Return the model without origins of nodes and without shapes that can be inferred."""
    graph = model.graph
    del graph.value_info[:]
    for entry in (graph, *graph.node, *graph.initializer, *graph.input, *graph.output):
        del entry.metadata_props[:]
        entry.doc_string = ""
    return model


def duplicate(model: Any) -> Any:
    """Return a copy of a model."""
    copy = type(model)()
    copy.CopyFrom(model)
    return copy


def _count_calls(net: nn.Module, x: Tensor, names: list[str]) -> tuple[Counter[str], int]:
    """Return the number of calls of each layer in a pass, and the number of additions."""
    calls: Counter[str] = Counter()
    modules = {name: net.get_submodule(name) for name in names}
    counting = hooks.feeding(modules, lambda name, module, x: calls.update([name]))
    with torch.no_grad(), counting, residual_adds.Adds(lambda name, x: x) as additions:
        forward(net, x)
    return calls, additions.number


def weight(net: nn.Module, layer: str) -> Tensor:
    """Return the weight that a layer of `net` computes with; "" is the network itself."""
    tensor = net.get_submodule(layer).weight
    assert isinstance(tensor, Tensor)
    return tensor
