"""The student: a copy of a network that learns soft weights, biases and input scales.

The network's code is not rewritten. For a pass, layers temporarily get their soft weights and
biases, and hooks quantize their inputs. Whatever a forward does between its layers still happens.
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
from sq.learning import input_quantizers
from sq.learning.schedules import PrecisionMix
from sq.learning.soft_rounding import Forward, SoftRounding
from sq.network import geometry, hooks
from sq.network.copies import copied
from sq.network.weight_swap import copied_weight_users, swapped_parameters
from sq.types.problem import Problem, QuantizedLayer, QuantizedModel, digest

Start = Callable[[Problem], QuantizedModel]  # the quantizer whose codes learning starts from
# Of matrix products and convolutions in a pass; losses are summed in float32.
Precision = Literal["float32", "bfloat16"]
Hold = Annotated[float, Interval(gt=0, lt=0.5)]


class Student:
    """The quantized network while it learns.

    Parameters
    ----------
    problem : its network stays as it is
    start : gives the codes and grids that rounding starts from
    hold : least distance of the start from 1/2, see `SoftRounding`
    seed : of adapters of input steps, see `sq.learning.adaptive_step`; None has no adapters

    Raises
    ------
    SqError : a grid of inputs is not uniform, or belongs to a residual addition; see `start`
    """

    def __init__(self, problem: Problem, start: Start, hold: float, seed: int | None = None):
        self.problem = problem
        self.initial = start(problem)
        self.net = copied(problem.model.net).requires_grad_(False)
        self.roundings: dict[str, SoftRounding] = {}
        for layer in problem.model.layers:
            initial = self.initial.layers[layer.name]
            W = geometry.weight(layer.module)
            self.roundings[layer.name] = SoftRounding(layer, W, initial.grid, initial.codes, hold)
        self.inputs = input_quantizers.build(problem, seed)
        values = nn.ModuleList([*self.roundings.values(), *self.inputs.values()])
        self.values = values.to(problem.batch.x.device)  # all that is learned
        self.precision: Precision = "float32"
        self.mix: PrecisionMix | None = None  # of full precision into layer inputs
        self._holders = copied_weight_users(problem.model, self.net)

    @contextmanager
    def quantized_inputs(self) -> Iterator[None]:
        """Quantize layer inputs while the context lasts."""
        modules = {name: self.net.get_submodule(name) for name in self.inputs}
        with hooks.replacing(modules, lambda name, module, x: self.inputs[name](x, self.mix)):
            yield

    @contextmanager
    def learned_weights(
        self, names: list[str], forward: Forward, mix: PrecisionMix | None
    ) -> Iterator[dict[str, Tensor]]:
        """Let layers compute with their learned weights and biases; yield their roundings h."""
        h = {name: self.roundings[name].h(forward) for name in names}
        replacements: list[tuple[nn.Module, str, Tensor]] = []
        for name in names:
            rounding = self.roundings[name]
            weight = rounding.weight(h[name])
            replacements += [(module, "weight", weight) for module in self._holders[name]]
            if rounding.bias is not None:
                replacements.append((self.net.get_submodule(name), "bias", rounding.bias))
        with swapped_parameters(replacements), self.mixing(mix):
            yield h

    def compute(self, module: nn.Module, x: Tensor) -> Tensor:
        """Return the output of a module of the network for `x`, in the precision of learning.

        `x` must be a fresh tensor: the module may change it in place.
        """
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.precision == "bfloat16"):
            return module(x)

    @contextmanager
    def mixing(self, mix: PrecisionMix | None) -> Iterator[None]:
        """Mix full precision into layer inputs, or none, while the context lasts."""
        before, self.mix = self.mix, mix
        try:
            yield
        finally:
            self.mix = before

    def harden(self, names: list[str]) -> None:
        """Write the decoded codes and the biases of layers into the network."""
        for name in names:
            rounding, module = self.roundings[name], self.net.get_submodule(name)
            geometry.set_weight(module, rounding.grid().decode(rounding.codes()))
            if rounding.bias is not None:
                with torch.no_grad():
                    module.bias.copy_(rounding.bias)  # type: ignore[operator]

    def finish(self, seconds: Mapping[str, float], cpu_seconds: float) -> QuantizedModel:
        """Return the hardened quantized network; its times are those of start and learning.

        Parameters
        ----------
        seconds : by layer
        cpu_seconds : of all layers together, divided among them as the seconds are
        """
        self.harden([*self.roundings])
        insertion.attach(
            self.net, {name: quantizer.grid() for name, quantizer in self.inputs.items()}
        )
        cpu_per_second = cpu_seconds / (sum(seconds.values()) or 1.0)
        layers: dict[str, QuantizedLayer] = {}
        for name in self.roundings:
            layers[name] = self._layer(name, seconds[name], cpu_per_second * seconds[name])
        return QuantizedModel(self.net, layers)

    def _layer(self, name: str, seconds: float, cpu_seconds: float) -> QuantizedLayer:
        rounding, before = self.roundings[name], self.initial.layers[name].report
        codes, grid = rounding.codes(), rounding.grid()
        W = geometry.weight(rounding.layer.module)
        hessian = self.problem.statistics.layers[name].hessian
        report = before | {
            "solve_seconds": before["solve_seconds"] + seconds,
            "relative_error": relative_error(W, grid.decode(codes), hessian),
            "codes": digest([codes]),
            "flipped": rounding.flipped(),
            "scale_moved": float((rounding.sigma.detach() - 1).abs().mean()),
            "bias_moved": _bias_change(rounding),
        }
        if "solve_cpu_seconds" in before:
            report["solve_cpu_seconds"] = before["solve_cpu_seconds"] + cpu_seconds
        if name in self.inputs:
            report["input_scale"] = float(self.inputs[name].sigma.detach())
        return QuantizedLayer(codes, grid, report)


def _bias_change(rounding: SoftRounding) -> float:
    """Return the mean absolute change of a layer's bias; 0 without a bias."""
    if rounding.bias is None:
        return 0.0
    change = rounding.bias - rounding.layer.module.bias  # type: ignore[operator]
    return float(change.detach().abs().mean())
