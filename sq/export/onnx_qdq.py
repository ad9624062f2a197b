"""A network's ONNX graph with integers in place of its weights, and with what its layers are fed quantized.

A weight becomes codes and a DequantizeLinear of each output channel, or codes and a look-up in the
table of their levels; an input, or an operand of an addition, goes through QuantizeLinear and
DequantizeLinear. Codes of up to 4 bits are stored in 4, of up to 8 in 8. The functions change a
graph in place.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from onnx import GraphProto, NodeProto, TensorProto, helper
from torch import Tensor

from sq.errors import SqError
from sq.export import bit_packing
from sq.grid.level_grid import LevelGrid
from sq.grid.uniform_grid import UniformGrid
from sq.network import residual_adds
from sq.types.problem import Grid

MOST = 8  # bits of a code
# the largest size of a signed weight of which two products with unsigned bytes add up within 16
# bits
SAFE = 64
PLACES: dict[int, int] = {
    TensorProto.UINT4: 4,
    TensorProto.INT4: 4,
    TensorProto.UINT8: 8,
    TensorProto.INT8: 8,
}


def put_weight(  # noqa: PLR0913 (the weight in three, and how it is stored)
    graph: GraphProto,
    layer: str,
    codes: Tensor,
    grid: Grid,
    shape: tuple[int, ...],
    least: int = 4,
    unsigned: bool = False,
) -> None:
    """Put codes (G, O, I) of a `grid` in place of the weight, of this `shape`, that a layer has.

    Parameters
    ----------
    least : bits that a code is stored in at least, 4 or 8
    unsigned : store signed integers of 8 bits as unsigned ones with a zero point: the same weights

    Raises
    ------
    SqError : codes of more than 8 bits; a grid that ONNX has no operator for; the graph has no such
    weight
    """
    name = f"{layer}.weight"
    _take_out(graph, name)
    if grid.levels > 2**MOST:
        raise SqError(
            f"{layer} has codes of more than {MOST} bits, which ONNX cannot hold: use export=packed"
        )
    if isinstance(grid, LevelGrid):
        nodes = _look_up(graph, name, codes.reshape(shape), grid, least)
    elif isinstance(grid, UniformGrid):
        nodes = [
            _dequantize(
                graph, name, stored(codes, grid, shape, least, unsigned), grid, least, unsigned
            )
        ]
    else:
        raise SqError(
            f"{layer} has a {type(grid).__name__}, which ONNX cannot hold: use export=packed"
        )
    for node in reversed(nodes):
        graph.node.insert(0, node)


def put_input(graph: GraphProto, layer: str, grid: Grid, calls: int) -> None:
    """Quantize what a layer is fed, in each of its `calls`.

    Raises
    ------
    SqError : more than 8 bits; a grid that ONNX has no operator for; another number of nodes
    computes with its weight
    """
    nodes = users(graph, f"{layer}.weight")
    if len(nodes) != calls:
        raise SqError(
            f"{len(nodes)} nodes of the ONNX graph compute with the weight of {layer}, which is called {calls} times: "
            "use export=packed"
        )
    _quantize(graph, f"{layer}.input", grid, [(node, 0) for node in nodes])


def put_operands(graph: GraphProto, grids: Mapping[str, Grid], count: int) -> None:
    """Quantize operands of residual additions, by the names they have in `sq/network/residual_adds.py`.

    Parameters
    ----------
    count : of additions in one pass; they are the graph's additions of two feature maps, in its
    order

    Raises
    ------
    SqError : as of `put_input`; the graph makes another number of additions
    """
    found = _additions(graph)
    if len(found) != count:
        raise SqError(
            f"the ONNX graph adds {len(found)} pairs of feature maps, the network {count}: use export=packed, or "
            "activation.observe.adds=false"
        )
    for number, node in enumerate(found):
        for place, side in enumerate(residual_adds.sides(number)):
            if side in grids:
                _quantize(graph, side, grids[side], [(node, place)])


def _quantize(
    graph: GraphProto, name: str, grid: Grid, places: list[tuple[NodeProto, int]]
) -> None:
    """Quantize what nodes are fed at these places of theirs."""
    if not isinstance(grid, UniformGrid):
        raise SqError(f"{name} has a {type(grid).__name__}: ONNX cannot hold it, use export=packed")
    if grid.levels > 2**MOST:
        raise SqError(f"{name} has more than {MOST} bits: ONNX cannot hold it, use export=packed")
    scale, low, high = (float(own) for own in (grid.scale, grid.low, grid.high))
    kind, zero = _kind(int(low), int(high), 8)
    if zero is not None and not 0 <= zero < 2**MOST:
        raise SqError(
            f"{name} has a zero point beyond its codes, which ONNX cannot hold: use export=packed"
        )
    _add(graph, f"{name}.scale", torch.tensor(scale), TensorProto.FLOAT)
    _add(graph, f"{name}.zero", None if zero is None else torch.tensor(zero), kind)
    narrow = grid.levels < 2**MOST  # else the codes' own ends are the grid's
    for end, value in (("low", scale * low), ("high", scale * high)) if narrow else ():
        _add(graph, f"{name}.{end}", torch.tensor(value), TensorProto.FLOAT)
    for number, (node, place) in enumerate(places):
        own, fed, ends = f"{name}.{number}", node.input[place], [f"{name}.scale", f"{name}.zero"]
        clip = [helper.make_node("Clip", [fed, f"{name}.low", f"{name}.high"], [f"{own}.within"])]
        made = [
            *(clip if narrow else []),
            helper.make_node(
                "QuantizeLinear", [f"{own}.within" if narrow else fed, *ends], [f"{own}.codes"]
            ),
            helper.make_node("DequantizeLinear", [f"{own}.codes", *ends], [f"{own}.values"]),
        ]
        at = [*graph.node].index(node)
        node.input[place] = f"{own}.values"
        for step in reversed(made):
            step.name = f"{step.output[0]}.node"
            graph.node.insert(at, step)


def codes_in(graph: GraphProto, layer: str) -> Tensor:
    """Return the integers that are stored for a layer's weight, of its shape, as they are in the file."""
    own = next(tensor for tensor in graph.initializer if tensor.name == f"{layer}.weight.codes")
    data = torch.frombuffer(bytearray(own.raw_data), dtype=torch.uint8)
    width, shape = PLACES[own.data_type], tuple(own.dims)
    made = bit_packing.unpack(data, width, int(torch.tensor(shape).prod()))
    signed = own.data_type in (TensorProto.INT4, TensorProto.INT8)
    return (
        torch.where(made >= 2 ** (width - 1), made - 2**width, made).view(shape)
        if signed
        else made.view(shape)
    )


def stored(
    codes: Tensor, grid: Grid, shape: tuple[int, ...], least: int = 4, unsigned: bool = False
) -> Tensor:
    """Return the integers that `put_weight` stores for `codes`."""
    if (
        isinstance(grid, UniformGrid)
        and _kind(*_ends(grid), width(grid, least), unsigned)[1] is None
    ):
        return (codes + grid.low.to(codes)).reshape(shape)
    return codes.reshape(shape)


def saturating(codes: Tensor, grid: Grid) -> bool:
    """Tell whether sums of two products with inputs of 8 bits can be beyond 16 bits, stored signed.

    x86 processors without VNNI add them up in 16 bits (see `sq.core.processor`): 2 * 255 * 64 =
    32,640 is below 2^15 yet, and one more is not.
    """
    if not isinstance(grid, UniformGrid) or _kind(*_ends(grid), 8)[1] is not None:
        return False
    return bool(((codes + grid.low.to(codes)).abs() > SAFE).any())


def _dequantize(
    graph: GraphProto, name: str, codes: Tensor, grid: UniformGrid, least: int, unsigned: bool
) -> NodeProto:
    low, wide = grid.low.flatten(), width(grid, least)
    kind, zero = _kind(*_ends(grid), wide, unsigned)
    zeros = torch.zeros_like(low) if zero is None else -low
    if bool((zeros != zeros.round()).any()) or int(zeros.min()) < 0 or int(zeros.max()) >= 2**wide:
        raise SqError(
            f"{name} has zero points beyond its codes, which ONNX cannot hold: use export=packed"
        )
    _add(graph, f"{name}.codes", codes, kind)
    _add(graph, f"{name}.scale", grid.scale.flatten(), TensorProto.FLOAT)
    _add(graph, f"{name}.zero", zeros, kind)
    inputs = [f"{name}.{part}" for part in ("codes", "scale", "zero")]
    return helper.make_node("DequantizeLinear", inputs, [name], name=f"{name}.dequantize", axis=0)


def _look_up(
    graph: GraphProto, name: str, codes: Tensor, grid: LevelGrid, least: int
) -> list[NodeProto]:
    _add(
        graph,
        f"{name}.codes",
        codes,
        TensorProto.UINT4 if width(grid, least) == 4 else TensorProto.UINT8,
    )
    _add(graph, f"{name}.levels", grid.table, TensorProto.FLOAT)
    _add(graph, f"{name}.scale", grid.scale.reshape(-1, *[1] * (codes.ndim - 1)), TensorProto.FLOAT)
    steps: list[tuple[str, list[str], str, dict[str, Any]]] = [
        ("Cast", [f"{name}.codes"], f"{name}.places", {"to": TensorProto.INT32}),
        ("Gather", [f"{name}.levels", f"{name}.places"], f"{name}.units", {}),
        ("Mul", [f"{name}.units", f"{name}.scale"], name, {}),
    ]
    return [
        helper.make_node(kind, fed, [out], name=f"{out}.{kind}", **more)
        for kind, fed, out, more in steps
    ]


def _ends(grid: UniformGrid) -> tuple[int, int]:
    return int(grid.low.min()), int(grid.high.max())


def width(grid: Grid, least: int = 4) -> int:
    """Return the bits that a code is stored in."""
    return 4 if grid.levels <= 2**4 and least == 4 else 8


def _kind(low: int, high: int, width: int, unsigned: bool = False) -> tuple[int, int | None]:
    """Return the type of integers from `low` to `high`, and the zero point: None for signed ones, which need none.

    Where `unsigned`, integers of 8 bits are not signed.
    """
    half = 2 ** (width - 1)
    if -half <= low < 0 and high < half and not (unsigned and width == 8):
        return (TensorProto.INT4 if width == 4 else TensorProto.INT8), None
    return (TensorProto.UINT4 if width == 4 else TensorProto.UINT8), -low


def _add(graph: GraphProto, name: str, values: Tensor | None, kind: int) -> None:
    own = torch.tensor(0) if values is None else values.detach().cpu()
    if kind == TensorProto.FLOAT:
        raw = own.float().contiguous().numpy().tobytes()
    else:
        width = PLACES[kind]
        raw = bit_packing.pack(own.to(torch.int32) % 2**width, width).numpy().tobytes()
    graph.initializer.append(
        TensorProto(name=name, data_type=kind, dims=list(own.shape), raw_data=raw)
    )


def _take_out(graph: GraphProto, name: str) -> None:
    found = [tensor for tensor in graph.initializer if tensor.name == name]
    if len(found) != 1:
        raise SqError(
            f"the ONNX graph has no weight {name}: PyTorch's exporter has changed it; use export=packed"
        )
    graph.initializer.remove(found[0])


def _additions(graph: GraphProto) -> list[NodeProto]:
    """Return the nodes that add two feature maps of one shape, in the graph's order; no constants, no vectors."""
    shapes = {
        own.name: own.type.tensor_type.shape.dim
        for own in [*graph.value_info, *graph.input, *graph.output]
    }
    constant = {own.name for own in graph.initializer} | {
        n.output[0] for n in graph.node if n.op_type == "Constant"
    }

    def counts(node: NodeProto) -> bool:
        left, right = (shapes.get(name) for name in node.input)
        alike = left is not None and right is not None and len(left) > 2 and [*left] == [*right]
        return alike and not constant & {*node.input}

    return [node for node in graph.node if node.op_type == "Add" and counts(node)]


def users(graph: GraphProto, weight: str) -> list[NodeProto]:
    """Return the nodes that compute with a weight, as it is or transposed."""
    names, found = {weight}, []
    for node in graph.node:
        if node.op_type in ("Transpose", "Identity", "Cast") and node.input[0] in names:
            names.add(node.output[0])
        elif len(node.input) > 1 and node.input[1] in names:
            found.append(node)
    return found
