"""A network that is trained while it computes with quantized weights and inputs (QAT)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from sq.activation import insertion
from sq.core.progress import say
from sq.errors import SqError
from sq.hessian.layer_statistics import relative_error
from sq.learning.adaptive_step import Adaptive, AdaptiveInput
from sq.learning.input_quantizers import inputs
from sq.learning.learned_step import FLOOR
from sq.network import geometry, hooks
from sq.network.copies import copied
from sq.network.weight_swap import copied_weight_users, swapped_parameters
from sq.training.weight_projection import Weight
from sq.types.problem import Problem, QuantizedLayer, QuantizedModel, digest

# what is trained, what its gradient is multiplied with, whether it decays
Group = tuple[nn.Parameter, float, bool]


class Trainee:
    """The network in training; full precision stays as it is in `problem`.

    Parameters
    ----------
    problem : grids are fitted to its weights and inputs, to start from
    adaptive : the step of each input adapts to the sample, see `sq.learning.adaptive_step`; or
    "static", see `Adapter`
    seed : of adapters

    Raises
    ------
    SqError : inputs are in full precision with `adaptive`; a grid of inputs that is not uniform, or
    of an addition
    """

    def __init__(self, problem: Problem, adaptive: Adaptive, seed: int):
        self.problem = problem
        self.net = copied(problem.model.net)
        self.weights: dict[str, Weight] = {}
        for layer in problem.model.layers:
            grid = problem.grid(layer.name, geometry.weight(layer.module), problem.bits[layer.name])
            self.weights[layer.name] = Weight(layer, grid)
        self._holders = copied_weight_users(problem.model, self.net)
        self.inputs = inputs(problem, seed if adaptive else None, adaptive == "static")
        self.quantizers = nn.ModuleList([*self.weights.values(), *self.inputs.values()]).to(
            problem.batch.x.device
        )
        self._seen: dict[str, int] = {}  # how many numbers a layer was fed, in the last pass

    @contextmanager
    def computing(self) -> Iterator[None]:
        """Let the network compute with quantized weights and inputs while the context lasts."""

        def see(name: str, module: nn.Module, x: Tensor) -> Tensor:
            self._seen[name] = x.numel()
            return self.inputs[name](x)

        weights = {name: own() for name, own in self.weights.items()}
        given = (
            (module, "weight", weights[name])
            for name, own in self._holders.items()
            for module in own
        )
        fed = {name: self.net.get_submodule(name) for name in self.inputs}
        with swapped_parameters(given), hooks.replacing(fed, see):
            yield

    def groups(self) -> list[Group]:
        """Return all that is trained; call it after a pass. Steps do not decay, all else does.

        Source
        ------
        Esser et al. 2020 (LSQ), arXiv 1902.08153, section 2.2: gradients of steps are multiplied
        with 1 / sqrt(p n), p the largest unit and n the numbers quantized. `Input` learns a factor
        of its step s, so 1 / s^2 beside it.
        """
        # replaced by those of `weights`
        held = {id(m.weight) for own in self._holders.values() for m in own}
        found: list[Group] = [(p, 1.0, True) for p in self.net.parameters() if id(p) not in held]
        for weight in self.weights.values():
            found += [(weight.value, 1.0, True), (weight.scale, weight.slower, False)]
        if missing := [name for name in self.inputs if name not in self._seen]:
            raise SqError(
                f"layer {missing[0]} is not called by every batch, so it cannot be trained: choose eptq"
            )
        for name, own in self.inputs.items():
            step, largest = float(own.scale), float(torch.maximum(-own.low, own.high))
            found.append((own.sigma, 1 / (math.sqrt(largest * self._seen[name]) * step**2), False))
            if isinstance(own, AdaptiveInput):
                found += [(p, 1.0, True) for p in own.adapter.trained()]
        return found

    def hold(self) -> None:
        """Keep all scales above zero, after a step."""
        for weight in self.weights.values():
            weight.hold()
        with torch.no_grad():
            for own in self.inputs.values():
                own.sigma.clamp_(min=FLOOR)

    def tell_floored(self) -> None:
        """Say which scales ended as low as they may."""
        low = [name for name, own in self.weights.items() if own.floored()]
        low += [
            f"what {name} is fed"
            for name, own in self.inputs.items()
            if bool((own.sigma <= FLOOR).any())
        ]
        if low:
            say(
                f"scales of {len(low)} tensors ended at {FLOOR:g} of the first, the least allowed "
                f"({', '.join(low[:3])}): lower quantizer.train.rate"
            )

    def finish(self, seconds: float, cpu_seconds: float) -> QuantizedModel:
        """Return the quantized network in eval mode; its layers share the seconds that training took."""
        done: dict[str, QuantizedLayer] = {}
        for name, own in self.weights.items():
            codes, grid = own.codes(), own.grid()
            geometry.set_weight(self.net.get_submodule(name), grid.decode(codes))
            hessian = self.problem.statistics.layers[name].hessian
            report = {
                "fit_seconds": 0.0,
                "solve_seconds": seconds / len(self.weights),
                # Of the weights it started from, which training has left: not what accuracy goes
                # by.
                "relative_error": relative_error(
                    geometry.weight(own.layer.module), grid.decode(codes), hessian
                ),
                "codes": digest([codes]),
            }
            if codes.device.type == "cpu":
                report["solve_cpu_seconds"] = cpu_seconds / len(self.weights)
            done[name] = QuantizedLayer(codes, grid, report)
        insertion.attach(self.net, {name: own.grid() for name, own in self.inputs.items()})
        return QuantizedModel(self.net.eval().requires_grad_(False), done)
