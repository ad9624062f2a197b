"""Quantization of an ONNX graph: integer weights, and QuantizeLinear/DequantizeLinear at inputs.

A weight becomes codes and a DequantizeLinear per output channel, or codes and a look-up in the
table of their levels. An input, or an operand of an addition, goes through QuantizeLinear and
DequantizeLinear. Codes of up to 4 bits are stored in 4 bits, those of up to 8 in 8. The functions
change a graph in place.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from onnx import GraphProto, NodeProto, TensorProto, helper
from torch import Tensor

from sq.errors import SqError
from sq.export import bit_packing
from sq.grid.level_grid import LevelGrid
from sq.grid.uniform_grid import UniformGrid
from sq.network import residual_adds
from sq.types.problem import Grid

MAX_BITS = 8  # of a code
# The largest signed weight of which two products with unsigned bytes add up within 16 bits.
MAX_SAFE_WEIGHT = 64
BITS: dict[int, int] = {
    TensorProto.UINT4: 4,
    TensorProto.INT4: 4,
    TensorProto.UINT8: 8,
    TensorProto.INT8: 8,
}


@dataclass(frozen=True)
class _IntegerType:
    """A type of integers in ONNX, and the zero point that it needs: None for signed integers."""

    onnx_type: int
    zero_point: int | None


def put_weight(  # noqa: PLR0913 (the weight in three, and how it is stored)
    graph: GraphProto,
    layer: str,
    codes: Tensor,
    grid: Grid,
    shape: tuple[int, ...],
    least: int = 4,
    unsigned: bool = False,
) -> None:
    """Replace the weight of a layer, of this `shape`, by codes (G, O, I) of a `grid`.

    Parameters
    ----------
    least : least number of bits in which a code is stored, 4 or 8
    unsigned : store signed 8-bit integers as unsigned ones with a zero point: the same weights

    Raises
    ------
    SqError : codes have more than 8 bits; ONNX has no operator for the grid; the graph has no such
        weight
    """
    name = f"{layer}.weight"
    _remove_initializer(graph, name)
    if grid.levels > 2**MAX_BITS:
        raise SqError(
            f"{layer} has codes of more than {MAX_BITS} bits, which ONNX cannot hold: use "
            "export=packed"
        )
    if isinstance(grid, LevelGrid):
        nodes = _look_up(graph, name, codes.reshape(shape), grid, least)
    elif isinstance(grid, UniformGrid):
        integers = stored(codes, grid, shape, least, unsigned)
        nodes = [_dequantize(graph, name, integers, grid, least, unsigned)]
    else:
        raise SqError(
            f"{layer} has a {type(grid).__name__}, which ONNX cannot hold: use export=packed"
        )
    _insert(graph, 0, nodes)


def put_input(graph: GraphProto, layer: str, grid: Grid, calls: int) -> None:
    """Quantize the input of a layer in each of its `calls`.

    Raises
    ------
    SqError : more than 8 bits; ONNX has no operator for the grid; another number of nodes computes
        with the layer's weight
    """
    nodes = users(graph, f"{layer}.weight")
    if len(nodes) != calls:
        raise SqError(
            f"{len(nodes)} nodes of the ONNX graph compute with the weight of {layer}, which is "
            f"called {calls} times: use export=packed"
        )
    _quantize(graph, f"{layer}.input", grid, [(node, 0) for node in nodes])


def put_operands(graph: GraphProto, grids: Mapping[str, Grid], count: int) -> None:
    """Quantize operands of residual additions, by their names in `sq/network/residual_adds.py`.

    Parameters
    ----------
    count : additions in one pass; they are the graph's additions of two feature maps, in its order

    Raises
    ------
    SqError : as in `put_input`; the graph has another number of additions
    """
    additions = _additions(graph)
    if len(additions) != count:
        raise SqError(
            f"the ONNX graph adds {len(additions)} pairs of feature maps, the network {count}: use "
            "export=packed, or activation.observe.adds=false"
        )
    for number, node in enumerate(additions):
        for position, operand in enumerate(residual_adds.sides(number)):
            if operand in grids:
                _quantize(graph, operand, grids[operand], [(node, position)])


def _quantize(
    graph: GraphProto, name: str, grid: Grid, inputs: list[tuple[NodeProto, int]]
) -> None:
    """Quantize the inputs of nodes, given by node and position."""
    if not isinstance(grid, UniformGrid):
        raise SqError(f"{name} has a {type(grid).__name__}: ONNX cannot hold it, use export=packed")
    if grid.levels > 2**MAX_BITS:
        raise SqError(
            f"{name} has more than {MAX_BITS} bits: ONNX cannot hold it, use export=packed"
        )
    scale, low, high = float(grid.scale), float(grid.low), float(grid.high)
    integers = _integer_type(int(low), int(high), 8)
    zero_point = integers.zero_point
    if zero_point is not None and not 0 <= zero_point < 2**MAX_BITS:
        raise SqError(
            f"{name} has a zero point beyond its codes, which ONNX cannot hold: use export=packed"
        )
    _add_initializer(graph, f"{name}.scale", torch.tensor(scale), TensorProto.FLOAT)
    # A signed type has the zero point 0.
    _add_initializer(graph, f"{name}.zero", torch.tensor(zero_point or 0), integers.onnx_type)
    # With all codes of the type, QuantizeLinear clips to the grid. With fewer, Clip does.
    clips = grid.levels < 2**MAX_BITS
    if clips:
        _add_initializer(graph, f"{name}.low", torch.tensor(scale * low), TensorProto.FLOAT)
        _add_initializer(graph, f"{name}.high", torch.tensor(scale * high), TensorProto.FLOAT)
    for number, (node, position) in enumerate(inputs):
        steps = _quantize_steps(name, f"{name}.{number}", node.input[position], clips)
        index = list(graph.node).index(node)
        node.input[position] = f"{name}.{number}.values"
        _insert(graph, index, steps)


def _quantize_steps(name: str, prefix: str, x: str, clips: bool) -> list[NodeProto]:
    """Return the nodes from `x` to `prefix`.values, with the initializers of the grid `name`."""
    grid = [f"{name}.scale", f"{name}.zero"]
    steps: list[NodeProto] = []
    if clips:
        bounds = [f"{name}.low", f"{name}.high"]
        steps.append(helper.make_node("Clip", [x, *bounds], [f"{prefix}.within"]))
        x = f"{prefix}.within"
    steps.append(helper.make_node("QuantizeLinear", [x, *grid], [f"{prefix}.codes"]))
    steps.append(
        helper.make_node("DequantizeLinear", [f"{prefix}.codes", *grid], [f"{prefix}.values"])
    )
    for step in steps:
        step.name = f"{step.output[0]}.node"
    return steps


def codes_in(graph: GraphProto, layer: str) -> Tensor:
    """Return the integers stored for a layer's weight, in its shape."""
    name = f"{layer}.weight.codes"
    tensor = next(tensor for tensor in graph.initializer if tensor.name == name)
    data = torch.frombuffer(bytearray(tensor.raw_data), dtype=torch.uint8)
    bits, shape = BITS[tensor.data_type], tuple(tensor.dims)
    codes = bit_packing.unpack(data, bits, math.prod(shape))
    if tensor.data_type in (TensorProto.INT4, TensorProto.INT8):  # two's complement
        codes = torch.where(codes >= 2 ** (bits - 1), codes - 2**bits, codes)
    return codes.view(shape)


def stored(
    codes: Tensor, grid: Grid, shape: tuple[int, ...], least: int = 4, unsigned: bool = False
) -> Tensor:
    """Return the integers that `put_weight` stores for `codes`."""
    if isinstance(grid, UniformGrid):
        low, high = _bounds(grid)
        integers = _integer_type(low, high, width(grid, least), unsigned)
        if integers.zero_point is None:
            return (codes + grid.low.to(codes)).reshape(shape)
    return codes.reshape(shape)


def saturating(codes: Tensor, grid: Grid) -> bool:
    """Tell whether sums of two products with 8-bit inputs can exceed 16 bits, if stored signed.

    x86 processors without VNNI add them up in 16 bits (see `sq.core.processor`): 2 * 255 * 64 =
    32,640 is still below 2^15, but 2 * 255 * 65 is not.
    """
    if not isinstance(grid, UniformGrid):
        return False
    low, high = _bounds(grid)
    if _integer_type(low, high, 8).zero_point is not None:
        return False
    return bool(((codes + grid.low.to(codes)).abs() > MAX_SAFE_WEIGHT).any())


def _dequantize(
    graph: GraphProto, name: str, codes: Tensor, grid: UniformGrid, least: int, unsigned: bool
) -> NodeProto:
    """Add the codes of a weight on a uniform grid; return the node that decodes them."""
    channel_lows, bits = grid.low.flatten(), width(grid, least)
    low, high = _bounds(grid)
    integers = _integer_type(low, high, bits, unsigned)
    is_signed = integers.zero_point is None
    zeros = torch.zeros_like(channel_lows) if is_signed else -channel_lows
    is_fractional = bool((zeros != zeros.round()).any())
    if is_fractional or int(zeros.min()) < 0 or int(zeros.max()) >= 2**bits:
        raise SqError(
            f"{name} has zero points beyond its codes, which ONNX cannot hold: use export=packed"
        )
    _add_initializer(graph, f"{name}.codes", codes, integers.onnx_type)
    _add_initializer(graph, f"{name}.scale", grid.scale.flatten(), TensorProto.FLOAT)
    _add_initializer(graph, f"{name}.zero", zeros, integers.onnx_type)
    inputs = [f"{name}.codes", f"{name}.scale", f"{name}.zero"]
    return helper.make_node("DequantizeLinear", inputs, [name], name=f"{name}.dequantize", axis=0)


def _look_up(
    graph: GraphProto, name: str, codes: Tensor, grid: LevelGrid, least: int
) -> list[NodeProto]:
    """Add the codes of a weight on a grid of levels; return the nodes that decode them."""
    code_type = TensorProto.UINT4 if width(grid, least) == 4 else TensorProto.UINT8
    scale = grid.scale.reshape(-1, *[1] * (codes.ndim - 1))
    _add_initializer(graph, f"{name}.codes", codes, code_type)
    _add_initializer(graph, f"{name}.levels", grid.table, TensorProto.FLOAT)
    _add_initializer(graph, f"{name}.scale", scale, TensorProto.FLOAT)
    places, units = f"{name}.places", f"{name}.units"
    return [
        helper.make_node(
            "Cast", [f"{name}.codes"], [places], name=f"{places}.Cast", to=TensorProto.INT32
        ),
        helper.make_node("Gather", [f"{name}.levels", places], [units], name=f"{units}.Gather"),
        helper.make_node("Mul", [units, f"{name}.scale"], [name], name=f"{name}.Mul"),
    ]


def _bounds(grid: UniformGrid) -> tuple[int, int]:
    """Return the lowest and the highest unit of all channels."""
    return int(grid.low.min()), int(grid.high.max())


def width(grid: Grid, least: int = 4) -> int:
    """Return the number of bits in which a code is stored."""
    return 4 if grid.levels <= 2**4 and least == 4 else 8


def _integer_type(low: int, high: int, width: int, unsigned: bool = False) -> _IntegerType:
    """Return the type for integers from `low` to `high`; with `unsigned`, no signed 8-bit type."""
    half = 2 ** (width - 1)
    is_signed = -half <= low < 0 and high < half and not (unsigned and width == 8)
    if is_signed:
        return _IntegerType(TensorProto.INT4 if width == 4 else TensorProto.INT8, None)
    return _IntegerType(TensorProto.UINT4 if width == 4 else TensorProto.UINT8, -low)


def _add_initializer(graph: GraphProto, name: str, values: Tensor, onnx_type: int) -> None:
    values = values.detach().cpu()
    if onnx_type == TensorProto.FLOAT:
        data = values.float().contiguous()
    else:
        bits = BITS[onnx_type]
        data = bit_packing.pack(values.to(torch.int32) % 2**bits, bits)
    graph.initializer.append(
        TensorProto(
            name=name,
            data_type=onnx_type,
            dims=list(values.shape),
            raw_data=data.numpy().tobytes(),
        )
    )


def _remove_initializer(graph: GraphProto, name: str) -> None:
    tensors = [tensor for tensor in graph.initializer if tensor.name == name]
    if len(tensors) != 1:
        raise SqError(
            f"the ONNX graph has no weight {name}: PyTorch's exporter has changed it; use "
            "export=packed"
        )
    graph.initializer.remove(tensors[0])


def _insert(graph: GraphProto, index: int, nodes: list[NodeProto]) -> None:
    """Insert `nodes` in their order before the node at `index`."""
    for node in reversed(nodes):
        graph.node.insert(index, node)


def _additions(graph: GraphProto) -> list[NodeProto]:
    """Return the nodes that add two feature maps of one shape, in the graph's order.

    Additions of constants and of vectors do not count.
    """
    shapes = {}
    for value in (*graph.value_info, *graph.input, *graph.output):
        shapes[value.name] = value.type.tensor_type.shape.dim
    constants = {tensor.name for tensor in graph.initializer}
    constants |= {node.output[0] for node in graph.node if node.op_type == "Constant"}
    additions: list[NodeProto] = []
    for node in graph.node:
        if node.op_type != "Add" or constants & {*node.input}:
            continue
        left, right = (shapes.get(name) for name in node.input)
        if left is None or right is None:
            continue
        if len(left) > 2 and list(left) == list(right):
            additions.append(node)
    return additions


def users(graph: GraphProto, weight: str) -> list[NodeProto]:
    """Return the nodes that compute with a weight, as it is or transposed."""
    names = {weight}
    nodes: list[NodeProto] = []
    for node in graph.node:
        if node.op_type in ("Transpose", "Identity", "Cast") and node.input[0] in names:
            names.add(node.output[0])
        elif len(node.input) > 1 and node.input[1] in names:
            nodes.append(node)
    return nodes
