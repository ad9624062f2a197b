"""Rounding errors of a network's weights and layer inputs, at several bit-widths.

Rounding to nearest changes a weight w by D(b) = Q_b(w) - w, and an input x by Q_b(x) - x. The
sensitivity metrics share these errors, and a network with all of them at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor, nn

from sq.errors import SqError
from sq.network import hooks, residual_adds
from sq.network.weight_swap import original_weight, swapped_weights
from sq.runtime import cpu_threads
from sq.types.costs import Rows
from sq.types.problem import Grid, Layer, Problem

Kind = Literal["weights", "inputs"]


class Sites:
    """The weights of all layers, or the inputs of those with input grids, at some bit-widths.

    A choice is a layer with one of its widths. Layers whose bits are fixed (`Problem.fixed`) have
    that width alone, whatever width the others are at.

    Parameters
    ----------
    problem : its grids are fitted once for each layer and width, when they are first needed
    kind : "weights" or "inputs"
    bits : the widths; without any, there are no layers
    """

    def __init__(self, problem: Problem, kind: Kind, bits: list[int]):
        self.model = problem.model
        self.kind = kind
        self.bits = bits
        self.layers: list[Layer] = []
        if bits and kind == "weights":
            self.layers = problem.model.layers
        elif bits:
            self.layers = [
                layer for layer in problem.model.layers if layer.name in problem.inputs.bits
            ]
        self._problem = problem
        self._fixed = problem.fixed  # bits by layer name
        self._grids: dict[tuple[str, int], Grid] = {}  # by layer name and bits

    @property
    def modules(self) -> dict[str, nn.Module]:
        """Return the layers' modules by name."""
        return {layer.name: layer.module for layer in self.layers}

    def choices(self) -> list[tuple[Layer, int]]:
        """Return every layer with each of its widths."""
        choices = []
        for layer in self.layers:
            choices += [(layer, bits) for bits in self.widths(layer)]
        return choices

    def widths(self, layer: Layer) -> list[int]:
        """Return the widths that a layer may have."""
        return [self._fixed[layer.name]] if layer.name in self._fixed else self.bits

    def width_at(self, layer: Layer, bits: int) -> int:
        """Return the width of a layer when all layers without a fixed width are at `bits`."""
        return self._fixed.get(layer.name, bits)

    def by_choice(self, table: Tensor) -> Tensor:
        """Return a table (layers, widths) as one value for each of `choices`.

        Column b of the table is measured with all layers at width b. A layer with a fixed width
        gets the mean over the columns.
        """
        values = []
        for layer, row in zip(self.layers, table, strict=True):
            if layer.name in self._fixed:
                row = row.mean(0, keepdim=True)
            values.append(row)
        return torch.cat(values)

    def repeat(self, values: Tensor) -> Tensor:
        """Return a value of each layer, (layers,), as one value for each of `choices`."""
        counts = [len(self.widths(layer)) for layer in self.layers]
        return values.repeat_interleave(torch.tensor(counts))

    def rows(self, values: list[float]) -> Rows:
        """Return a value for each of `choices` by layer name and bits."""
        rows: Rows = {layer.name: {} for layer in self.layers}
        for (layer, bits), value in zip(self.choices(), values, strict=True):
            rows[layer.name][bits] = value
        return rows

    def grid(self, layer: Layer, bits: int) -> Grid:
        """Return the grid of a layer's weights (G, O, I), or of its inputs (any shape)."""
        key = (layer.name, bits)
        if key not in self._grids:
            self._grids[key] = self._fit(layer, bits)
        return self._grids[key]

    def _fit(self, layer: Layer, bits: int) -> Grid:
        if self.kind == "weights":
            weight = original_weight(layer).reshape(layer.groups, layer.outputs, layer.inputs)
            return self._problem.grid(layer.name, weight, bits)
        grid = self._problem.inputs.grid(layer.name, bits)
        # It may be on another device than the images.
        return residual_adds.to_device(grid, self._problem.batch.x.device)

    def fit_all(self) -> None:
        """Fit the grids of all weights now, if on a CPU: several at a time, one thread each."""
        if self.kind == "weights" and self._problem.batch.x.device.type == "cpu":
            cpu_threads.each(
                lambda choice: self.grid(*choice),
                self.choices(),
                "grids",
                cost=lambda choice: choice[0].weights,
            )

    def nearest(self, layer: Layer, bits: int, values: Tensor) -> Tensor:
        """Return `values` rounded to nearest, detached.

        Parameters
        ----------
        values : a weight of the module's shape, or an input of any shape
        """
        values, grid = values.detach(), self.grid(layer, bits)
        if self.kind == "inputs":
            return grid.nearest(values)
        rounded = grid.nearest(values.reshape(layer.groups, layer.outputs, layer.inputs))
        # The result has the weight's memory layout, which may be channels last.
        return torch.empty_like(values).copy_(rounded.view(values.shape))

    def error(self, layer: Layer, bits: int, values: Tensor) -> Tensor:
        """Return D = Q(values) - values, see `nearest`."""
        return self.nearest(layer, bits, values) - values.detach()


def score_sites(
    problem: Problem, bits: list[int], input_bits: list[int], score: Callable[[Sites], Rows]
) -> tuple[Rows, Rows]:
    """Return ``score(sites)`` of weights at `bits` and of inputs at `input_bits`; {} for no bits.

    Raises
    ------
    SqError : `input_bits` are given, but inputs have no grids
    """
    if input_bits and not problem.inputs.bits:
        raise SqError(
            f"sensitivity.input_bits={input_bits}: activation=none leaves inputs in full "
            "precision, so they have no sensitivity; set activation=mse (or another), or "
            "sensitivity.input_bits=[]"
        )
    weights = Sites(problem, "weights", bits)
    inputs = Sites(problem, "inputs", input_bits)
    weights.fit_all()
    inputs.fit_all()
    weight_rows = score(weights) if bits else {}
    input_rows = score(inputs) if input_bits else {}
    return weight_rows, input_rows


def refuse_inputs(metric: str, input_bits: list[int]) -> None:
    """Raise an `SqError` if there are `input_bits`, for a metric that scores weights alone."""
    if input_bits:
        raise SqError(
            f"sensitivity={metric} scores weights alone: set sensitivity.input_bits=[], or choose "
            "label_free, kl, interaction, measured, noise, grad_l1, fisher, trace or "
            "output_error, which score inputs as well"
        )


@contextmanager
def all_rounded(sites: Sites, bits: int) -> Iterator[dict[str, Tensor]]:
    """Round all of `sites` to nearest at `bits`, those with fixed bits at their own.

    Yields the inputs of layers in the last pass, before rounding, by name; {} if `sites` are
    weights.
    """
    inputs: dict[str, Tensor] = {}
    layers = {layer.name: layer for layer in sites.layers}

    def round_input(name: str, module: nn.Module, x: Tensor) -> Tensor:
        inputs[name] = x
        layer = layers[name]
        return sites.nearest(layer, sites.width_at(layer, bits), x)

    if sites.kind == "weights":
        rounded: dict[str, Tensor] = {}
        for name, layer in layers.items():
            width = sites.width_at(layer, bits)
            rounded[name] = sites.nearest(layer, width, original_weight(layer))
        with swapped_weights(sites.model, rounded):
            yield inputs
    else:
        with hooks.replacing(sites.modules, round_input):
            yield inputs
