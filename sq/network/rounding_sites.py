"""Where a network is rounded: the weights of its layers, and what they are fed, at several widths.

Rounding to nearest changes a weight w by D(b) = Q_b(w) - w and an input x by Q_b(x) - x. What
metrics share is here: those errors, and a network that computes with other weights or inputs for a
while. Parameters are never written to: a module is lent another tensor under the name `weight`, so
what a metric leaves is the network it got, bit by bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor, nn

from sq.errors import SqError
from sq.network import hooks, residual_adds
from sq.runtime import cpu_threads
from sq.types.costs import Rows
from sq.types.problem import Grid, Layer, Model, Problem

Kind = Literal["weights", "inputs"]


class Sites:
    """The weights of all layers, or the inputs of those that have grids for them, at the widths to price.

    Layers whose bits are settled (`Problem.fixed`) have those alone, whatever width the others are
    at.

    Parameters
    ----------
    problem : its grids are fitted once for each layer and width, when they are first needed
    kind : "weights" or "inputs"
    bits : the widths
    """

    def __init__(self, problem: Problem, kind: Kind, bits: list[int]):
        self.model, self.kind, self.bits = problem.model, kind, bits
        every = problem.model.layers
        own = (
            every
            if kind == "weights"
            else [layer for layer in every if layer.name in problem.inputs.bits]
        )
        self.layers = own if bits else []
        self._problem = problem
        self._fixed = problem.fixed
        self._grids: dict[tuple[str, int], Grid] = {}

    @property
    def modules(self) -> dict[str, nn.Module]:
        """Return the layers' modules by name."""
        return {layer.name: layer.module for layer in self.layers}

    def choices(self) -> list[tuple[Layer, int]]:
        """Return every layer with every width it may have."""
        return [(layer, bits) for layer in self.layers for bits in self.widths(layer)]

    def widths(self, layer: Layer) -> list[int]:
        """Return the widths to price a layer at."""
        return [self._fixed[layer.name]] if layer.name in self._fixed else self.bits

    def at(self, layer: Layer, bits: int) -> int:
        """Return the width of a layer where all that may have it are at `bits`."""
        return self._fixed.get(layer.name, bits)

    def flat(self, table: Tensor) -> Tensor:
        """Return a figure (layers, widths) of networks with all layers at one width, in the order of `choices`.

        That of a settled layer is the mean over the widths of the others.
        """
        rows = zip(self.layers, table, strict=True)
        return torch.cat(
            [row.mean(0, keepdim=True) if s.name in self._fixed else row for s, row in rows]
        )

    def spread(self, values: Tensor) -> Tensor:
        """Return a figure of each layer (layers,) once for each of its widths, in the order of `choices`."""
        return values.repeat_interleave(
            torch.tensor([len(self.widths(layer)) for layer in self.layers])
        )

    def rows(self, values: list[float]) -> Rows:
        """Return `values`, in the order of `choices`, by layer name and bits."""
        given = iter(values)
        return {
            layer.name: {bits: next(given) for bits in self.widths(layer)} for layer in self.layers
        }

    def grid(self, layer: Layer, bits: int) -> Grid:
        """Return the grid of a layer's weights (G, O, I), or of its inputs (any shape)."""
        if (layer.name, bits) not in self._grids:
            if self.kind == "weights":
                W = weight(layer).reshape(layer.groups, layer.outputs, layer.inputs)
                grid = self._problem.grid(layer.name, W, bits)
            else:
                grid = residual_adds.on(
                    self._problem.inputs.grid(layer.name, bits), self._problem.batch.x.device
                )
            self._grids[layer.name, bits] = grid
        return self._grids[layer.name, bits]

    def fit(self) -> None:
        """Fit the grids of all weights now, on a CPU side by side: one thread each, as each is fitted for itself."""
        if self.kind == "weights" and self._problem.batch.x.device.type == "cpu":
            cpu_threads.each(
                lambda one: self.grid(*one),
                self.choices(),
                "grids",
                cost=lambda one: one[0].weights,
            )

    def nearest(self, layer: Layer, bits: int, values: Tensor) -> Tensor:
        """Return `values` rounded to nearest, detached: a weight of the module's shape, or an input of any."""
        values, grid = values.detach(), self.grid(layer, bits)
        if self.kind == "inputs":
            return grid.nearest(values)
        rounded = grid.nearest(values.reshape(layer.groups, layer.outputs, layer.inputs))
        # laid out in memory as the weight is
        return torch.empty_like(values).copy_(rounded.view(values.shape))

    def error(self, layer: Layer, bits: int, values: Tensor) -> Tensor:
        """Return D = Q(values) - values, see `nearest`."""
        return self.nearest(layer, bits, values) - values.detach()


def price(
    problem: Problem, bits: list[int], input_bits: list[int], one: Callable[[Sites], Rows]
) -> tuple[Rows, Rows]:
    """Return what `one` says of the weights at `bits`, and of the inputs at `input_bits`; {} of no widths.

    Raises
    ------
    SqError : inputs are to be priced, and have no grids
    """
    if input_bits and not problem.inputs.bits:
        raise SqError(
            f"sensitivity.input_bits={input_bits}: activation=none leaves inputs in full precision, so they have no "
            "price; set activation=mse (or another), or sensitivity.input_bits=[]"
        )
    both = (Sites(problem, "weights", bits), Sites(problem, "inputs", input_bits))
    for sites in both:
        sites.fit()
    weights, inputs = (one(sites) if sites.bits else {} for sites in both)
    return weights, inputs


def refuse_inputs(metric: str, input_bits: list[int]) -> None:
    """Raise an `SqError` if the inputs of layers are to be priced by a metric that is of weights alone."""
    if input_bits:
        raise SqError(
            f"sensitivity={metric} prices weights alone: set sensitivity.input_bits=[], or choose label_free, kl, "
            "interaction, measured, noise, grad_l1, fisher, trace or output_error, which price inputs as well"
        )


def weight(layer: Layer) -> Tensor:
    """Return a layer's own weight in its module's shape, detached, whatever the module has been lent."""
    own = layer.module._parameters["weight"]
    assert own is not None
    return own.detach()


def holders(net: nn.Module, layer: Layer) -> list[nn.Module]:
    """Return the modules of `net` that compute with this layer's weight: its own, and others that share it."""
    own = layer.module._parameters["weight"]
    return [m for m in net.modules() if m._parameters.get("weight") is own]


def counterparts(model: Model, copied: nn.Module) -> dict[str, list[nn.Module]]:
    """Return the modules of a copy of the network that compute with each layer's weight, see `holders`, by its name."""
    names = {id(module): name for name, module in model.net.named_modules()}
    return {
        layer.name: [
            copied.get_submodule(names[id(module)]) for module in holders(model.net, layer)
        ]
        for layer in model.layers
    }


@contextmanager
def lending(given: Iterable[tuple[nn.Module, str, Tensor]]) -> Iterator[None]:
    """Let modules compute with tensors in place of their parameters of these names, for a while."""
    before: list[tuple[nn.Module, str, Tensor | None]] = []
    try:
        for module, name, tensor in given:
            # what is lent already, of all or some layers
            before.append((module, name, module.__dict__.get(name)))
            module.__dict__[name] = tensor  # found before the parameter of that name
        yield
    finally:
        for module, name, earlier in reversed(before):
            if earlier is None:
                module.__dict__.pop(name, None)
            else:
                module.__dict__[name] = earlier


@contextmanager
def lent(model: Model, weights: Mapping[str, Tensor]) -> Iterator[None]:
    """Let the network compute with these `weights`, by layer name and of their modules' shapes, for a while."""
    own = {layer.name: layer for layer in model.layers}
    with lending(
        (m, "weight", given)
        for name, given in weights.items()
        for m in holders(model.net, own[name])
    ):
        yield


@contextmanager
def changed(
    model: Model, kind: Kind, layer: Layer, put: Callable[[Tensor], Tensor]
) -> Iterator[None]:
    """Let one layer compute with ``put(weight)``, of its own weight, or be fed ``put(x)``, for a while."""
    if kind == "weights":
        with torch.no_grad():
            given = put(weight(layer))
        with lent(model, {layer.name: given}):
            yield
    else:
        with hooks.replacing({layer.name: layer.module}, lambda name, module, x: put(x)):
            yield


@contextmanager
def all_rounded(sites: Sites, bits: int) -> Iterator[dict[str, Tensor]]:
    """Round all of `sites` to nearest for a while; give what layers were fed last, by name, if `sites` are inputs.

    They have `bits`, but for those that are settled at others.
    """
    fed: dict[str, Tensor] = {}
    own = {layer.name: layer for layer in sites.layers}

    def put(name: str, module: nn.Module, x: Tensor) -> Tensor:
        fed[name] = x
        return sites.nearest(own[name], sites.at(own[name], bits), x)

    if sites.kind == "weights":
        rounded = {
            n: sites.nearest(layer, sites.at(layer, bits), weight(layer))
            for n, layer in own.items()
        }
        with lent(sites.model, rounded):
            yield fed
    else:
        with hooks.replacing(sites.modules, put):
            yield fed
