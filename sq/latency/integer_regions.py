"""What stands next to a layer in a quantized ONNX graph, and a layer alone that is fed and returns what it is there."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from onnx import GraphProto, NodeProto, TensorProto, helper

from sq.export.onnx_export import Neighbours
from sq.export.onnx_qdq import users

PASSED = ("Relu", "Clip")  # what kernels of integers take along


def find(graph: GraphProto, layers: Iterable[str]) -> dict[str, Neighbours]:
    """Return what stands next to layers, whose inputs are quantized in this graph.

    A layer returns codes if what it returns is quantized, by a ReLU at most, and used for nothing
    else; it is fed codes if that is how it is fed by another layer. In several calls it has to be
    so in each.
    """
    made = {name: node for node in graph.node for name in node.output}
    used: dict[str, list[NodeProto]] = defaultdict(list)
    for node in graph.node:
        for name in node.input:
            used[name].append(node)
    ends = {own.name for own in graph.output}

    def returns(node: NodeProto) -> bool:
        name = node.output[0]
        while name not in ends and len(used[name]) == 1:
            after = used[name][0]
            if after.op_type not in PASSED:
                return after.op_type == "QuantizeLinear"
            name = after.output[0]
        return False

    nodes = {layer: users(graph, f"{layer}.weight") for layer in layers}
    outs = {node.output[0] for own in nodes.values() for node in own if returns(node)}

    def is_fed(node: NodeProto) -> bool:
        values = made.get(node.input[0])
        codes = (
            made.get(values.input[0])
            if values is not None and values.op_type == "DequantizeLinear"
            else None
        )
        name = codes.input[0] if codes is not None else ""
        while name in made and made[name].op_type in PASSED:
            name = made[name].input[0]
        return name in outs

    return {
        layer: Neighbours(all(map(is_fed, own)), all(node.output[0] in outs for node in own))
        for layer, own in nodes.items()
    }


def let_codes(graph: GraphProto, beside: Neighbours) -> None:
    """Let codes in and out of the graph of a single layer whose input is quantized, where they are beside it."""
    step = next(node for node in graph.node if node.op_type == "QuantizeLinear")
    given, made, ends = graph.input[0], graph.output[0], list(step.input[1:])
    if beside.codes_out:
        graph.node.append(
            helper.make_node("QuantizeLinear", [made.name, *ends], ["out"], name="out.codes")
        )
        made.name = "out"
        made.type.tensor_type.elem_type = TensorProto.UINT8
    if beside.codes_in:
        if step.input[0] == given.name:
            given.name = step.output[0]
            graph.node.remove(step)
        else:  # something of the layer's own stands between, as padding that depends on the size
            graph.node.insert(
                0,
                helper.make_node("DequantizeLinear", ["in", *ends], [given.name], name="in.values"),
            )
            given.name = "in"
        given.type.tensor_type.elem_type = TensorProto.UINT8
    del graph.value_info[:]
