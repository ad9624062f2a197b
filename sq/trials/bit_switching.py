"""A network whose layers can each be set to any of several bit-widths, quantized once for each of them."""

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


class Mixture:
    """Every layer solved at every bit-width that is priced, to be put together at will.

    Layers are solved for what full precision feeds them, so that none of them depends on the
    others' bits.

    Parameters
    ----------
    problem : `bits` are those of the allocation; layers that `rows` do not price keep theirs, and
    those whose bits are
        settled can be set to these, priced or not
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
        wanted = {name: set(row) for name, row in rows.items()}
        for name, bits in problem.fixed.items():
            wanted.setdefault(name, set()).add(bits)
        widths = sorted(set().union(*wanted.values()))
        self.values: dict[str, dict[int, Tensor]] = {name: {} for name in wanted}
        for bits in track(widths, "bit-widths", len(widths)):
            chosen = {name: bits for name, row in wanted.items() if bits in row}
            made = quantize(replace(problem, bits=problem.bits | chosen))
            for name in chosen:
                own = made.layers[name]
                self.values[name][bits] = own.grid.decode(own.codes)
        self.net = made.net

    def set(self, bits: Mapping[str, int], inputs: Mapping[str, int] | None = None) -> nn.Module:
        """Return the network with these bits of weights, by layer name, and of inputs where those are given.

        It is the same network every time.
        """
        for name, width in bits.items():
            geometry.set_weight(self.net.get_submodule(name), self.values[name][width])
        if inputs:
            insertion.attach(self.net, self.problem.activations | self.problem.inputs.grids(inputs))
        return self.net
