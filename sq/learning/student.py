"""A copy of a network that learns to be quantized: soft weights, learned biases, learned scales of what layers are fed.

Nothing of the network is rewritten. For a pass, layers are lent their soft weights and biases;
their inputs are quantized by hooks. So whatever a forward does between its layers, it goes on
doing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Annotated, Literal

import torch
from annotated_types import Interval
from torch import Tensor, nn

from sq.activation import insertion
from sq.hessian.layer_statistics import relative_error
from sq.learning.input_quantizers import inputs
from sq.learning.schedules import Mix
from sq.learning.soft_rounding import Forward, Rounding
from sq.network import geometry, hooks
from sq.network.copies import copied
from sq.network.weight_swap import copied_weight_users, swapped_parameters
from sq.types.problem import Problem, QuantizedLayer, QuantizedModel, digest

Start = Callable[[Problem], QuantizedModel]  # the codes to start from
# of products and convolutions in a pass; sums of losses stay in float32
Precision = Literal["float32", "bfloat16"]
Hold = Annotated[float, Interval(gt=0, lt=0.5)]


class Student:
    """The quantized network while it learns.

    Parameters
    ----------
    problem : its network stays as it is
    start : the codes and grids that rounding starts from
    hold : how far from the other code roundings start at least, see `Rounding`
    seed : of adapters of the steps of inputs, see `sq.learning.adaptive_step`; None has none

    Raises
    ------
    SqError : a grid of inputs that is not uniform, or is of a residual addition; see `start`
    """

    def __init__(self, problem: Problem, start: Start, hold: float, seed: int | None = None):
        self.problem, self.begun = problem, start(problem)
        self.net = copied(problem.model.net).requires_grad_(False)
        self.roundings: dict[str, Rounding] = {}
        for layer in problem.model.layers:
            own = self.begun.layers[layer.name]
            self.roundings[layer.name] = Rounding(
                layer, geometry.weight(layer.module), own.grid, own.codes, hold
            )
        self.inputs = inputs(problem, seed)
        self.values = nn.ModuleList([*self.roundings.values(), *self.inputs.values()]).to(
            problem.batch.x.device
        )
        self.precision: Precision = "float32"
        self.mix: Mix | None = None  # of full precision, into what layers are fed; None for none
        self._holders = copied_weight_users(problem.model, self.net)

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Quantize what layers are fed while the context lasts."""
        fed = {name: self.net.get_submodule(name) for name in self.inputs}
        with hooks.replacing(fed, lambda name, module, x: self.inputs[name](x, self.mix)):
            yield

    @contextmanager
    def lent(
        self, names: list[str], forward: Forward, mix: Mix | None
    ) -> Iterator[dict[str, Tensor]]:
        """Let layers compute with what they have learned, for a pass; give their roundings h."""
        h = {name: self.roundings[name].h(forward) for name in names}
        given: list[tuple[nn.Module, str, Tensor]] = []
        for name in names:
            own = self.roundings[name]
            weight = own.weight(h[name])
            given += [(module, "weight", weight) for module in self._holders[name]]
            if own.bias is not None:
                given.append((self.net.get_submodule(name), "bias", own.bias))
        with swapped_parameters(given), self.mixed(mix):
            yield h

    def run(self, module: nn.Module, x: Tensor) -> Tensor:
        """Return what a module of the network makes of `x`, in the precision that is learned in.

        `x` must be a fresh tensor: the module may change it in place.
        """
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.precision == "bfloat16"):
            return module(x)

    @contextmanager
    def mixed(self, mix: Mix | None) -> Iterator[None]:
        """Mix full precision into what layers are fed, or none, while the context lasts."""
        before, self.mix = self.mix, mix
        try:
            yield
        finally:
            self.mix = before

    def harden(self, names: list[str]) -> None:
        """Write the values that the codes of layers decode to, and their biases, into the network."""
        for name in names:
            own, module = self.roundings[name], self.net.get_submodule(name)
            geometry.set_weight(module, own.grid().decode(own.codes()))
            if own.bias is not None:
                with torch.no_grad():
                    module.bias.copy_(own.bias)  # type: ignore[operator]

    def finish(self, seconds: Mapping[str, float], cpu_seconds: float) -> QuantizedModel:
        """Return the quantized network, hardened; what learning took joins what the start took.

        Parameters
        ----------
        seconds : by layer
        cpu_seconds : of all layers, which share it as they share the seconds
        """
        self.harden([*self.roundings])
        insertion.attach(self.net, {name: own.grid() for name, own in self.inputs.items()})
        rate = cpu_seconds / (sum(seconds.values()) or 1.0)
        done = {
            name: self._layer(name, seconds[name], rate * seconds[name]) for name in self.roundings
        }
        return QuantizedModel(self.net, done)

    def _layer(self, name: str, seconds: float, cpu_seconds: float) -> QuantizedLayer:
        own, before = self.roundings[name], self.begun.layers[name].report
        codes, grid = own.codes(), own.grid()
        W, hessian = geometry.weight(own.layer.module), self.problem.statistics.layers[name].hessian
        report = before | {
            "solve_seconds": before["solve_seconds"] + seconds,
            "relative_error": relative_error(W, grid.decode(codes), hessian),
            "codes": digest([codes]),
            "flipped": own.flipped(),
            "scale_moved": float((own.sigma.detach() - 1).abs().mean()),
            "bias_moved": self._bias_moved(own),
        }
        if "solve_cpu_seconds" in before:
            report["solve_cpu_seconds"] = before["solve_cpu_seconds"] + cpu_seconds
        if name in self.inputs:
            report["input_scale"] = float(self.inputs[name].sigma.detach())
        return QuantizedLayer(codes, grid, report)

    def _bias_moved(self, own: Rounding) -> float:
        if own.bias is None:
            return 0.0
        return float((own.bias - own.layer.module.bias).detach().abs().mean())  # type: ignore[operator]
