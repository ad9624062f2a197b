"""Time single layers as ONNX models, with the inputs and outputs that they have in a network.

Where a quantized layer comes straight after another and its outputs are quantized next, codes go in
and codes come out, which lets a runtime compute in integers. Where an operation in full precision
stands between (BatchNorm, a sum, a SiLU), floats go in to be quantized, or come out. Around a
single layer, runtimes transpose tensors that they do not transpose in a network, and each pass has
a fixed cost: the sum over single layers is an upper estimate.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sq.config.constraints import FLOAT
from sq.core.progress import track
from sq.errors import SqError
from sq.export import onnx_export
from sq.export.onnx_export import Neighbours
from sq.grid.uniform_grid import UniformGrid, spanning
from sq.network import geometry, hooks
from sq.network.forward import forward
from sq.runtime import interleaved_timing
from sq.types.problem import Grid, Layer, Model, Problem

# from models and their inputs, by name, to the milliseconds of each pass: see `onnx_session.race`
Race = Callable[[dict[str, tuple[Any, Tensor]]], dict[str, np.ndarray]]
# bits of weights, and bits of inputs, that are stored alike and take equally long
Stored = tuple[tuple[int, ...], tuple[int, ...]]
STORED_INPUT_BITS = 8  # codes of inputs are stored in 8 bits, whatever their width
NO_CODES = Neighbours(codes_in=False, codes_out=False)


@dataclass
class Geometry:
    """All that the latency of a layer depends on, and the layers that share it."""

    module: nn.Module
    shape: tuple[int, ...]  # of its input, all images
    neighbours: Neighbours
    layers: list[Layer] = field(default_factory=list)  # each as often as it is called so
    _plain: Any = field(default=None, repr=False)  # the ONNX model in full precision, once exported

    def model(self, weight: tuple[Tensor, Grid] | None, input_bits: int) -> Any:
        """Return the layer as an ONNX model of one input and one output.

        Parameters
        ----------
        weight : codes (G, O, I) and their grid; None for full precision
        input_bits : 1 to 8, or 32: full precision
        """
        if self._plain is None:
            net = nn.Sequential()
            net.add_module("layer", copy.deepcopy(self.module).cpu().eval())
            # Two images at least: torch.export takes a batch of one for a constant.
            example = torch.zeros(max(2, self.shape[0]), *self.shape[1:])
            self._plain = onnx_export.exported(net, example)
        model = onnx_export.duplicate(self._plain)
        if weight is not None:
            from sq.export import onnx_qdq
            from sq.latency import integer_regions

            shape = tuple(onnx_export.weight(self.module, "").shape)
            onnx_qdq.put_weight(model.graph, "layer", *weight, shape)
            if input_bits != FLOAT:
                grid = spanning(torch.tensor(0.0), torch.tensor(1.0), input_bits, symmetric=False)
                onnx_qdq.put_input(model.graph, "layer", grid, 1)
                integer_regions.pass_codes(model.graph, self._codes(input_bits))
        return model

    def _codes(self, input_bits: int) -> Neighbours:
        """Return where codes go in and out.

        None do with less than 8 bits: such values are clipped in full precision first.
        """
        return self.neighbours if input_bits == STORED_INPUT_BITS else NO_CODES

    def example_input(self, input_bits: int) -> Tensor:
        """Return an input for `model`."""
        generator = torch.Generator().manual_seed(0)
        if self._codes(input_bits).codes_in:
            return torch.randint(256, self.shape, generator=generator, dtype=torch.uint8)
        return torch.rand(self.shape, generator=generator)


def geometries(model: Model, x: Tensor, neighbours: dict[str, Neighbours]) -> list[Geometry]:
    """Return the distinct geometries of layers in a pass over images `x`, with their layers.

    Parameters
    ----------
    neighbours : where codes go in and out, by name of the layer; a layer without stays in full
        precision
    """
    geometry_of_key: dict[tuple[Any, ...], Geometry] = {}
    layers = {layer.name: layer for layer in model.layers}
    modules = {name: layer.module for name, layer in layers.items()}

    def add_call(name: str, module: nn.Module, inputs: Tensor) -> None:
        shape = tuple(inputs.shape)
        codes = neighbours.get(name, NO_CODES)
        # A layer that stays in full precision has no neighbours: it is timed apart.
        key = (*_settings(module), shape, codes, name in neighbours)
        if key not in geometry_of_key:
            geometry_of_key[key] = Geometry(module, shape, codes)
        geometry_of_key[key].layers.append(layers[name])

    with torch.no_grad(), hooks.feeding(modules, add_call):
        forward(model.net, x)
    return list(geometry_of_key.values())


def nearest_symmetric(W: Tensor, bits: int) -> tuple[Tensor, UniformGrid]:
    """Return a weight (G, O, I) rounded to nearest on a symmetric grid for each channel.

    Every tool can do that: it is the baseline of timings.
    """
    largest = W.abs().amax(2, keepdim=True)
    grid = spanning(-largest, largest, bits, symmetric=True)
    return grid.encode(W), grid


def rows(
    problem: Problem, alike: list[Geometry], bits: list[int], input_bits: list[int], race: Race
) -> Any:
    """Return the latency of layers at each width that codes can be stored in, all calls together.

    Weights are on the run's own grid.

    Returns
    -------
    one layer after the other ``{"layer", "bits", "input_bits", "median", "low", "high"}``:
    milliseconds, and lists of the widths that take so long

    Raises
    ------
    SqError : a layer that cannot be timed, named
    """
    sums: dict[tuple[str, Stored], np.ndarray] = {}
    for group in track(alike, "latency of layers"):
        try:
            times = _time(problem, group, bits, input_bits, race)
        except SqError as error:
            raise SqError(
                f"{group.layers[0].name}: {error}; latency.layers=false leaves layers out"
            ) from error
        for layer in group.layers:
            for stored, ms in times.items():  # ms: one value a round
                key = (layer.name, stored)
                sums[key] = sums[key] + ms if key in sums else ms
    table = []
    for (name, stored), ms in sums.items():
        row = {"layer": name, "bits": list(stored[0]), "input_bits": list(stored[1])}
        table.append(row | interleaved_timing.spread(ms))
    return table


def _time(
    problem: Problem, group: Geometry, bits: list[int], input_bits: list[int], race: Race
) -> dict[Stored, Any]:
    """Return the milliseconds of each pass of a layer, by the widths that are stored alike."""
    entrants: dict[Stored, tuple[Any, Tensor]] = {
        ((FLOAT,), (FLOAT,)): (group.model(None, FLOAT), group.example_input(FLOAT))
    }
    # Inputs of fewer bits are clipped and stored in 8 bits: they all take equally long.
    clipped = tuple(width for width in input_bits if width < STORED_INPUT_BITS)
    for weight_bits, weight in _weights(problem, group, bits):
        for stored_inputs in (clipped, (STORED_INPUT_BITS,), (FLOAT,)):
            if stored_inputs and stored_inputs[0] in input_bits:
                width = stored_inputs[0]
                entrant = (group.model(weight, width), group.example_input(width))
                entrants[weight_bits, stored_inputs] = entrant
    times = race({str(stored): entrant for stored, entrant in entrants.items()})
    return {stored: times[str(stored)] for stored in entrants}


def _weights(
    problem: Problem, group: Geometry, bits: list[int]
) -> list[tuple[tuple[int, ...], tuple[Tensor, Grid]]]:
    """Return codes and grid of the layer's weight, once for all of `bits` that are stored alike.

    None for a layer that is not quantized.
    """
    from sq.export import onnx_qdq

    name = group.layers[0].name
    if name not in {layer.name for layer in problem.model.layers}:
        return []
    W = geometry.weight(group.module)
    widths: dict[int, list[int]] = {}  # by bits in storage
    weights: dict[int, tuple[Tensor, Grid]] = {}
    for width in bits:
        grid = problem.grid(name, W, width)
        stored = onnx_qdq.width(grid)
        if stored not in weights:
            weights[stored] = (grid.encode(W).cpu(), grid.map(torch.Tensor.cpu))
        widths.setdefault(stored, []).append(width)
    return [(tuple(widths[stored]), weight) for stored, weight in weights.items()]


def _settings(module: nn.Module) -> tuple[Any, ...]:
    """Return the settings of a layer that its latency depends on."""
    has_bias = getattr(module, "bias", None) is not None
    shape = tuple(onnx_export.weight(module, "").shape)
    names = ("stride", "padding", "padding_mode", "dilation", "groups")
    settings = [str(getattr(module, name, None)) for name in names]
    return (type(module), shape, has_bias, *settings)
