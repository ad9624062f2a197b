"""Find where integer codes pass between quantized layers of an ONNX graph.

Kernels of integers need codes on both sides of a layer. Floats go in or come out where an
operation in full precision stands between two layers.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from onnx import GraphProto, NodeProto, TensorProto, ValueInfoProto, helper

from sq.export.onnx_export import Neighbours
from sq.export.onnx_qdq import users

FUSED = ("Relu", "Clip")  # activations that kernels of integers compute along with a layer


def find(graph: GraphProto, layers: Iterable[str]) -> dict[str, Neighbours]:
    """Return whether codes go in and come out of each layer of a graph with quantized inputs.

    Codes come out of a layer if its output is quantized, after a ReLU at most, and used for nothing
    else. Codes go in if its input is the output of such a layer. A layer that is called several
    times has codes only if each call has.
    """
    nodes = {layer: users(graph, f"{layer}.weight") for layer in layers}
    connections = _Connections(graph)
    code_outputs = set()  # names of values that come out as codes
    for calls in nodes.values():
        for node in calls:
            if connections.is_quantized(node.output[0]):
                code_outputs.add(node.output[0])
    neighbours = {}
    for layer, calls in nodes.items():
        neighbours[layer] = Neighbours(
            codes_in=all(connections.source(node) in code_outputs for node in calls),
            codes_out=all(node.output[0] in code_outputs for node in calls),
        )
    return neighbours


class _Connections:
    """Which nodes of a graph compute and use each value."""

    def __init__(self, graph: GraphProto):
        self.producer: dict[str, NodeProto] = {}
        self.consumers: dict[str, list[NodeProto]] = defaultdict(list)
        for node in graph.node:
            for name in node.output:
                self.producer[name] = node
            for name in node.input:
                self.consumers[name].append(node)
        self.outputs = {output.name for output in graph.output}

    def is_quantized(self, name: str) -> bool:
        """Return whether a value is only quantized, after fused activations at most."""
        # A value with another consumer, or an output of the graph, is needed as floats.
        while name not in self.outputs and len(self.consumers[name]) == 1:
            consumer = self.consumers[name][0]
            if consumer.op_type not in FUSED:
                return consumer.op_type == "QuantizeLinear"
            name = consumer.output[0]
        return False

    def source(self, node: NodeProto) -> str:
        """Return the value that the quantized input of `node` comes from, before fused activations.

        It is "" where the input is not quantized.
        """
        dequantize = self.producer.get(node.input[0])
        if dequantize is None or dequantize.op_type != "DequantizeLinear":
            return ""
        quantize = self.producer.get(dequantize.input[0])
        if quantize is None:
            return ""
        name = quantize.input[0]
        while name in self.producer and self.producer[name].op_type in FUSED:
            name = self.producer[name].input[0]
        return name


def pass_codes(graph: GraphProto, neighbours: Neighbours) -> None:
    """Change the graph of one layer with a quantized input to take and return codes.

    Codes pass on the sides where they do so in the network.
    """
    quantize = next(node for node in graph.node if node.op_type == "QuantizeLinear")
    scale_and_zero = list(quantize.input[1:])
    if neighbours.codes_out:
        graph_output = graph.output[0]
        graph.node.append(
            helper.make_node(
                "QuantizeLinear", [graph_output.name, *scale_and_zero], ["out"], name="out.codes"
            )
        )
        _set_codes(graph_output, "out")
    if neighbours.codes_in:
        graph_input = graph.input[0]
        if quantize.input[0] == graph_input.name:
            graph.node.remove(quantize)
            _set_codes(graph_input, quantize.output[0])
        else:
            # An operation of the layer comes first, such as padding that depends on the size: it
            # gets the values of the codes.
            graph.node.insert(
                0,
                helper.make_node(
                    "DequantizeLinear",
                    ["in", *scale_and_zero],
                    [graph_input.name],
                    name="in.values",
                ),
            )
            _set_codes(graph_input, "in")
    del graph.value_info[:]  # types of values inside may be others now


def _set_codes(value: ValueInfoProto, name: str) -> None:
    """Rename an input or output of a graph, and make it codes of 8 bits."""
    value.name = name
    value.type.tensor_type.elem_type = TensorProto.UINT8
