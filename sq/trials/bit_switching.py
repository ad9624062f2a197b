"""A network whose layers can be switched between bit-widths, quantized once for each of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from torch import Tensor, nn

from sq.activation import insertion
from sq.core.progress import track
from sq.errors import SqError
from sq.network import geometry
from sq.types.costs import Rows
from sq.types.problem import Problem, QuantizedModel

Quantize = Callable[[Problem], QuantizedModel]


class SwitchableNetwork:
    """Every layer solved at each of its bit-widths, and a network that can have any of them.

    Layers are solved for their inputs in full precision, so a layer's solution does not depend on
    the bits of the others.

    Parameters
    ----------
    problem : `bits` are those of the allocation. Layers without `rows` keep them. Layers with fixed
        bits can be set to these, whether `rows` have them or not
    quantize : the quantizer; called once for each bit-width
    rows : by layer name, the bit-widths to choose from

    Raises
    ------
    SqError : layers are solved for quantized inputs
    """

    def __init__(self, problem: Problem, quantize: Quantize, rows: Rows):
        if problem.batch.inputs != "reference":
            raise SqError(
                "calibration.inputs=quantized: a layer's solution depends on the bits before it; "
                "trials need calibration.inputs=reference"
            )
        self.problem = problem
        layer_widths = {name: set(row) for name, row in rows.items()}
        for name, bits in problem.fixed.items():
            layer_widths.setdefault(name, set()).add(bits)
        all_widths = sorted(set().union(*layer_widths.values()))
        # By layer name and bits: the quantized weight (G, O, I).
        self.weights: dict[str, dict[int, Tensor]] = {name: {} for name in layer_widths}
        for bits in track(all_widths, "bit-widths", len(all_widths)):
            names = [name for name, widths in layer_widths.items() if bits in widths]
            quantized = quantize(replace(problem, bits=problem.bits | dict.fromkeys(names, bits)))
            for name in names:
                layer = quantized.layers[name]
                self.weights[name][bits] = layer.grid.decode(layer.codes)
        # That of the last width: `set` overwrites its weights.
        self.net = quantized.net

    def set(self, bits: Mapping[str, int], inputs: Mapping[str, int] | None = None) -> nn.Module:
        """Return the network with these bits of weights and, if given, of inputs, by layer name.

        It is the same network every time.
        """
        for name, width in bits.items():
            module = self.net.get_submodule(name)
            geometry.set_weight(module, self.weights[name][width])
        if inputs:
            insertion.attach(self.net, self.problem.activations | self.problem.inputs.grids(inputs))
        return self.net
