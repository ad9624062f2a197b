"""A network that is trained while it computes with quantized weights and inputs (QAT)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sq.activation import insertion
from sq.core.progress import say
from sq.errors import SqError
from sq.hessian.layer_statistics import relative_error
from sq.learning import input_quantizers
from sq.learning.adaptive_step import Adaptive, AdaptiveInputQuantizer
from sq.learning.learned_step import SCALE_FLOOR
from sq.network import geometry, hooks
from sq.network.copies import copied
from sq.network.weight_swap import copied_weight_users, swapped_parameters
from sq.training.weight_projection import ProjectedWeight
from sq.types.problem import Problem, QuantizedLayer, QuantizedModel, digest


@dataclass(frozen=True)
class TrainedParameter:
    """A trained parameter, and how SGD treats it."""

    parameter: nn.Parameter
    gradient_factor: float = 1.0
    decays: bool = True  # has weight decay


class QuantizedNetwork:
    """A copy of the network of a problem, which is trained with quantized weights and inputs.

    Parameters
    ----------
    problem : grids are fitted to its weights and inputs, to start from; its network does not change
    adaptive : the step of each input adapts to the sample, see `sq.learning.adaptive_step`; or
        "static", see `Adapter`
    seed : of adapters

    Raises
    ------
    SqError : `adaptive` is set but inputs are in full precision; a grid of inputs is not uniform,
        or belongs to an addition
    """

    def __init__(self, problem: Problem, adaptive: Adaptive, seed: int):
        self.problem = problem
        self.net = copied(problem.model.net)
        self.weights: dict[str, ProjectedWeight] = {}
        for layer in problem.model.layers:
            grid = problem.grid(layer.name, geometry.weight(layer.module), problem.bits[layer.name])
            self.weights[layer.name] = ProjectedWeight(layer, grid)
        self._holders = copied_weight_users(problem.model, self.net)
        adapter_seed = seed if adaptive else None
        self.inputs = input_quantizers.build(problem, adapter_seed, adaptive == "static")
        quantizers = nn.ModuleList([*self.weights.values(), *self.inputs.values()])
        self.quantizers = quantizers.to(problem.batch.x.device)
        self._input_elements: dict[str, int] = {}  # elements of a layer's input in the last pass

    @contextmanager
    def computing(self) -> Iterator[None]:
        """Let the network compute with quantized weights and inputs while the context lasts."""

        def quantize_input(name: str, module: nn.Module, x: Tensor) -> Tensor:
            self._input_elements[name] = x.numel()
            return self.inputs[name](x)

        replacements: list[tuple[nn.Module, str, Tensor]] = []
        quantized = {name: weight() for name, weight in self.weights.items()}
        for name, holders in self._holders.items():
            replacements += [(module, "weight", quantized[name]) for module in holders]
        modules = {name: self.net.get_submodule(name) for name in self.inputs}
        with swapped_parameters(replacements), hooks.replacing(modules, quantize_input):
            yield

    def groups(self) -> list[TrainedParameter]:
        """Return all that is trained; call it after a pass. Only steps have no weight decay.

        Source
        ------
        Esser et al. 2020 (LSQ), arXiv 1902.08153, section 2.2: gradients of steps are multiplied by
        1 / sqrt(p n), p the largest unit and n the quantized elements. `InputQuantizer` learns a
        factor of its step s, which takes another 1 / s^2.
        """
        trained = self._network_parameters()
        for weight in self.weights.values():
            trained.append(TrainedParameter(weight.value))
            trained.append(TrainedParameter(weight.scale, weight.scale_gradient_factor, False))
        for name in self.inputs:
            if name not in self._input_elements:
                raise SqError(
                    f"layer {name} is not called for every batch, so it cannot be trained: choose "
                    "quantizer=eptq"
                )
        for name, quantizer in self.inputs.items():
            step = float(quantizer.scale)
            largest_unit = float(torch.maximum(-quantizer.low, quantizer.high))
            # sigma is in units of s: 1 / s^2 gives the update that LSQ makes to the step itself.
            factor = 1 / (math.sqrt(largest_unit * self._input_elements[name]) * step**2)
            trained.append(TrainedParameter(quantizer.sigma, factor, False))
            if isinstance(quantizer, AdaptiveInputQuantizer):
                trained += [TrainedParameter(p) for p in quantizer.adapter.trainable()]
        return trained

    def _network_parameters(self) -> list[TrainedParameter]:
        """Return the parameters of the network but for the weights that `self.weights` replaces."""
        replaced: set[int] = set()  # ids: tensors do not compare by identity
        for holders in self._holders.values():
            replaced.update(id(module.weight) for module in holders)
        return [TrainedParameter(p) for p in self.net.parameters() if id(p) not in replaced]

    def clamp_scales(self) -> None:
        """Keep all scales above zero, after a step."""
        for weight in self.weights.values():
            weight.clamp_scale()
        with torch.no_grad():
            for quantizer in self.inputs.values():
                quantizer.sigma.clamp_(min=SCALE_FLOOR)

    def report_floored_scales(self) -> None:
        """Log the tensors whose scales ended at their lower limit."""
        names = [name for name, weight in self.weights.items() if weight.is_floored()]
        for name, quantizer in self.inputs.items():
            if bool((quantizer.sigma <= SCALE_FLOOR).any()):
                names.append(f"input of {name}")
        if names:
            say(
                f"scales of {len(names)} tensors ended at their lower limit, {SCALE_FLOOR:g} of "
                f"the first ({', '.join(names[:3])}): lower quantizer.train.rate"
            )

    def finish(self, seconds: float, cpu_seconds: float) -> QuantizedModel:
        """Return the quantized network in eval mode; its layers share the training time."""
        layers: dict[str, QuantizedLayer] = {}
        for name, weight in self.weights.items():
            codes, grid = weight.codes(), weight.grid()
            decoded = grid.decode(codes)
            geometry.set_weight(self.net.get_submodule(name), decoded)
            original = geometry.weight(weight.layer.module)
            hessian = self.problem.statistics.layers[name].hessian
            report = {
                "fit_seconds": 0.0,
                "solve_seconds": seconds / len(self.weights),
                # Against the weights before training: it does not tell the accuracy.
                "relative_error": relative_error(original, decoded, hessian),
                "codes": digest([codes]),
            }
            if codes.device.type == "cpu":
                report["solve_cpu_seconds"] = cpu_seconds / len(self.weights)
            layers[name] = QuantizedLayer(codes, grid, report)
        grids = {name: quantizer.grid() for name, quantizer in self.inputs.items()}
        insertion.attach(self.net, grids)
        return QuantizedModel(self.net.eval().requires_grad_(False), layers)
