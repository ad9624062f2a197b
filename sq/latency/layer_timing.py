"""Single layers as ONNX models, with what stands directly before and after them in a network, and how long they take.

Where a quantized layer comes straight after another and its outputs are quantized next, codes go in
and codes come out, which lets a runtime compute in integers. Where something in full precision
stands between (BatchNorm, a sum, a SiLU), floats go in to be quantized, or come out. Runtimes have
transpositions around a layer alone that they leave out in a network, and a pass has its own cost:
what layers take one by one is no less than what they take together.
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

Race = Callable[[dict[str, tuple[Any, Tensor]]], dict[str, np.ndarray]]  # see `onnx_session.race`
# bits of weights, and of inputs, that are stored alike
Stored = tuple[tuple[int, ...], tuple[int, ...]]


@dataclass
class Geometry:
    """What the latency of a layer follows from, and the layers that have it, each as often as it is called so."""

    module: nn.Module
    shape: tuple[int, ...]  # of its input, all images
    beside: Neighbours
    layers: list[Layer] = field(default_factory=list)

    def model(self, weight: tuple[Tensor, Grid] | None, wide: int) -> Any:
        """Return the layer as an ONNX model of one input and one output.

        Parameters
        ----------
        weight : codes (G, O, I) and their grid; None for full precision
        wide : bits of the input, 1 to 8, or 32: full precision
        """
        if self._plain is None:
            net = nn.Sequential()
            net.add_module("layer", copy.deepcopy(self.module).cpu().eval())
            self._plain = onnx_export.exported(
                net, torch.zeros(max(2, self.shape[0]), *self.shape[1:])
            )
        made = onnx_export.duplicate(self._plain)
        if weight is not None:
            from sq.export import onnx_qdq
            from sq.latency import integer_regions

            shape = tuple(onnx_export.weight(self.module, "").shape)
            onnx_qdq.put_weight(made.graph, "layer", *weight, shape)
            if wide != FLOAT:
                grid = spanning(torch.tensor(0.0), torch.tensor(1.0), wide, symmetric=False)
                onnx_qdq.put_input(made.graph, "layer", grid, 1)
                integer_regions.let_codes(made.graph, self._codes(wide))
        return made

    def _codes(self, wide: int) -> Neighbours:
        """Return where codes go in and out: codes of less than 8 bits are clipped in full precision first."""
        return self.beside if wide == 8 else Neighbours(codes_in=False, codes_out=False)

    def fed(self, wide: int) -> Tensor:
        """Return an input for `model`."""
        draw = torch.Generator().manual_seed(0)
        if self._codes(wide).codes_in:
            return torch.randint(256, self.shape, generator=draw, dtype=torch.uint8)
        return torch.rand(self.shape, generator=draw)

    _plain: Any = field(default=None, repr=False)


def geometries(model: Model, x: Tensor, beside: dict[str, Neighbours]) -> list[Geometry]:
    """Return how layers are called in a pass over images `x`, and which of them alike.

    Parameters
    ----------
    beside : what stands next to layers, by name; those without are in full precision
    """
    found: dict[tuple[Any, ...], Geometry] = {}
    own = {layer.name: layer for layer in model.layers}

    def see(name: str, module: nn.Module, fed: Tensor) -> None:
        ends = beside.get(name, Neighbours(codes_in=False, codes_out=False))
        made = Geometry(module, tuple(fed.shape), ends)
        found.setdefault((*_knobs(module), made.shape, ends, name in beside), made).layers.append(
            own[name]
        )

    with torch.no_grad(), hooks.feeding({name: layer.module for name, layer in own.items()}, see):
        forward(model.net, x)
    return list(found.values())


def nearest_symmetric(W: Tensor, bits: int) -> tuple[Tensor, UniformGrid]:
    """Return the codes of a weight (G, O, I) rounded to nearest on a symmetric grid of each channel's largest value.

    It is what every tool does at least, and what others are timed against.
    """
    reach = W.abs().amax(2, keepdim=True)
    grid = spanning(-reach, reach, bits, symmetric=True)
    return grid.encode(W), grid


def rows(
    problem: Problem, alike: list[Geometry], bits: list[int], input_bits: list[int], race: Race
) -> Any:
    """Return what layers take at each width that codes can be stored in, on the run's own grid, all calls together.

    Returns
    -------
    one geometry after the other ``{"layer", "bits", "input_bits", "median", "low", "high"}``:
    milliseconds, and widths of which each takes these

    Raises
    ------
    SqError : a layer that cannot be timed, named
    """
    sums: dict[tuple[str, Stored], np.ndarray] = {}
    for group in track(alike, "latency of layers"):
        try:
            taken = _alone(problem, group, bits, input_bits, race)
        except SqError as error:
            raise SqError(
                f"{group.layers[0].name}: {error}; latency.layers=false leaves layers out"
            ) from error
        for layer in group.layers:
            for stored, ms in taken.items():
                sums[layer.name, stored] = sums.get((layer.name, stored), np.zeros_like(ms)) + ms
    return [
        {"layer": name, "bits": list(stored[0]), "input_bits": list(stored[1])}
        | interleaved_timing.spread(ms)
        for (name, stored), ms in sums.items()
    ]


def _alone(
    problem: Problem, own: Geometry, bits: list[int], input_bits: list[int], race: Race
) -> dict[Stored, Any]:
    """Return the milliseconds of each pass of a layer."""
    weights = (
        _weights(problem, own, bits)
        if own.layers[0].name in {layer.name for layer in problem.model.layers}
        else []
    )
    entrants: dict[Stored, tuple[Any, Tensor]] = {
        ((FLOAT,), (FLOAT,)): (own.model(None, FLOAT), own.fed(FLOAT))
    }
    below = tuple(wide for wide in input_bits if wide < 8)  # they take equally long
    for narrow, given in weights:
        for alike in (below, (8,), (FLOAT,)):
            if alike and alike[0] in input_bits:
                entrants[narrow, alike] = own.model(given, alike[0]), own.fed(alike[0])
    took = race({str(stored): entrant for stored, entrant in entrants.items()})
    return {stored: took[str(stored)] for stored in entrants}


def _weights(
    problem: Problem, own: Geometry, bits: list[int]
) -> list[tuple[tuple[int, ...], tuple[Tensor, Grid]]]:
    """Return codes and grids of the layer's weight, one for all of `bits` that are stored alike."""
    from sq.export import onnx_qdq

    found: dict[int, tuple[list[int], tuple[Tensor, Grid]]] = {}
    W = geometry.weight(own.module)
    for width in bits:
        grid = problem.grid(own.layers[0].name, W, width)
        if (stored := onnx_qdq.width(grid)) not in found:
            found[stored] = [], (grid.encode(W).cpu(), grid.map(torch.Tensor.cpu))
        found[stored][0].append(width)
    return [(tuple(widths), made) for widths, made in found.values()]


def _knobs(module: nn.Module) -> tuple[Any, ...]:
    """Return what tells how a layer computes."""
    names = ("stride", "padding", "padding_mode", "dilation", "groups")
    shape, bias = (
        tuple(onnx_export.weight(module, "").shape),
        getattr(module, "bias", None) is not None,
    )
    return (type(module), shape, bias, *(str(getattr(module, name, None)) for name in names))
