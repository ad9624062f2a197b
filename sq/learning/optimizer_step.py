"""The loss and the optimizers of one stage of reconstruction, and one step of them.

The loss is the reconstruction error of a part, see `sq.learning.reconstruction_loss`, and the
rounding regulariser.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from sq.config.constraints import NotNegative
from sq.core.progress import say
from sq.core.wording import quantity
from sq.errors import SqError
from sq.learning import schedules
from sq.learning.adaptive_step import AdaptiveInputQuantizer
from sq.learning.learned_step import SCALE_FLOOR
from sq.learning.learning_run import LearningRun, Part
from sq.learning.schedules import PrecisionSchedule
from sq.learning.soft_rounding import Forward, regulariser, soft
from sq.learning.student import Precision
from sq.runtime.monte_carlo import seeded

# Learning rates of roundings, of biases, of the factors of weight scales (one per channel) and of
# input scales (one per layer), and of adapters. Adapters exist if any stage learns them. What has
# rate 0, or no rate, is not learned.
Kind = Literal["rounding", "bias", "scale", "input", "adapter"]
Rates = dict[Kind, NotNegative]


@dataclass(frozen=True)
class StageSettings:
    """Settings of `learn` that stay the same throughout a stage."""

    forward: Forward
    optimizer: str
    rates: Rates
    keep: PrecisionSchedule
    share: float
    precision: Precision


@dataclass(frozen=True)
class ParameterGroup:
    """Parameters of one kind, which share a learning rate."""

    kind: Kind
    rate: float  # at the first step
    parameters: list[nn.Parameter]
    decays: bool  # the rate falls to 0 as a cosine


class StageOptimizer:
    """The optimizers of one stage, and one step of them."""

    def __init__(self, run: LearningRun, part: Part, stage: int, settings: StageSettings):
        self.run, self.part, self.stage, self.settings = run, part, stage, settings
        self.forward: Forward = settings.forward if settings.rates.get("rounding") else "fixed"
        run.student.precision = settings.precision
        run.student.values.requires_grad_(False)
        self.optimizers: list[torch.optim.Optimizer] = []
        self.groups: list[list[ParameterGroup]] = []  # by optimizer
        if self.forward != "fixed":
            self._add_rounding_optimizer()
        self._add_adam()
        self.learned: list[nn.Parameter] = []
        self.scale_factors: list[nn.Parameter] = []
        for groups in self.groups:
            for group in groups:
                self.learned += group.parameters
                if group.kind in ("scale", "input"):
                    self.scale_factors += group.parameters

    def _add_rounding_optimizer(self) -> None:
        alphas = [self.run.student.roundings[name].alpha for name in self.part.layers]
        group = self._group("rounding", alphas)
        if self.settings.optimizer == "radam":
            self.optimizers.append(torch.optim.RAdam(alphas, lr=group.rate))
        else:
            self.optimizers.append(torch.optim.Adam(alphas, lr=group.rate, fused=True))
        self.groups.append([group])

    def _add_adam(self) -> None:
        """Add the optimizer of everything but the roundings, if anything else is learned."""
        groups = [
            self._group(kind, parameters)
            for kind, parameters in self._other_parameters().items()
            if self.settings.rates.get(kind) and parameters
        ]
        if not groups:
            return
        options = [{"params": group.parameters, "lr": group.rate} for group in groups]
        self.optimizers.append(torch.optim.Adam(options, fused=True))
        self.groups.append(groups)

    def _other_parameters(self) -> dict[Kind, list[nn.Parameter]]:
        student = self.run.student
        parameters: dict[Kind, list[nn.Parameter]] = {
            "bias": [],
            "scale": [],
            "input": [],
            "adapter": [],
        }
        for name in self.part.layers:
            rounding = student.roundings[name]
            if rounding.bias is not None:
                parameters["bias"].append(rounding.bias)
            parameters["scale"].append(rounding.sigma)
            if name in student.inputs:
                quantizer = student.inputs[name]
                parameters["input"].append(quantizer.sigma)
                if isinstance(quantizer, AdaptiveInputQuantizer):
                    parameters["adapter"] += quantizer.adapter.trainable()
        return parameters

    def _group(self, kind: Kind, parameters: list[nn.Parameter]) -> ParameterGroup:
        for parameter in parameters:
            parameter.requires_grad_()
        # Hard roundings would flip to and fro until the end at a constant rate.
        decays = kind in ("input", "adapter") or self.forward == "hard"
        return ParameterGroup(kind, self.settings.rates[kind], parameters, decays)

    def step(
        self, step: int, t: float, index: Tensor, exponent: float, pressure: float
    ) -> dict[str, float]:
        """Take one step; return the terms of the loss before it, and the share of full precision.

        Parameters
        ----------
        step, t : the number of the step, and its time from 0 to 1
        index : numbers (B,) of the images
        exponent, pressure : of the regulariser, and its weight in the loss
        """
        terms, loss = self._loss(step, t, index, exponent, pressure)
        # Nothing has a gradient while inputs alone are learned and are all in full precision.
        if not loss.requires_grad:
            return terms
        gradients = torch.autograd.grad(loss, self.learned, allow_unused=True)
        norms = [gradient.norm() for gradient in gradients if gradient is not None]
        self._check_finite({"gradient": float(torch.stack(norms).sum())}, step)
        for parameter, gradient in zip(self.learned, gradients, strict=True):
            parameter.grad = gradient
        cosine = (1 + math.cos(math.pi * t)) / 2
        for optimizer, groups in zip(self.optimizers, self.groups, strict=True):
            # A resumed optimizer has new `param_groups`, so they are looked up in each step.
            for options, group in zip(optimizer.param_groups, groups, strict=True):
                if group.decays:
                    options["lr"] = group.rate * cosine
            optimizer.step()
        with torch.no_grad():
            for factor in self.scale_factors:
                factor.clamp_(min=SCALE_FLOOR)
        return terms

    def _loss(
        self, step: int, t: float, index: Tensor, exponent: float, pressure: float
    ) -> tuple[dict[str, float], Tensor]:
        """Return the terms of the loss for the record, and the loss with its graph."""
        student, settings = self.run.student, self.settings
        device = student.problem.batch.x.device
        generator = seeded(self.run.seed, self.stage, step, device=device)
        mix = schedules.mix(settings.keep, t, settings.share, generator)
        layers = self.part.layers
        with torch.enable_grad(), student.learned_weights(layers, self.forward, mix) as roundings:
            error, weights = self.part.error(index, generator)
            terms = {"error": error}
            if self.forward == "soft" and pressure:
                penalties = [
                    weights[name] * regulariser(h, exponent) for name, h in roundings.items()
                ]
                terms["rounding"] = pressure * torch.stack(penalties).sum()
            loss = torch.stack([*terms.values()]).sum()
        values = {name: float(term.detach()) for name, term in terms.items()}
        values["kept"] = mix.share
        self._check_finite(values, step)
        return values, loss

    def report_floored_scales(self) -> None:
        """Log the layers whose scale factors ended at their lower limit."""
        names = [name for name in self.part.layers if self._is_floored(name)]
        if names:
            say(
                f"{self.part.name}: scale factors of {quantity(names, 'layer')} ended at their "
                f"lower limit {SCALE_FLOOR:g} ({', '.join(names[:3])}): lower "
                "quantizer.learn.rates.scale and rates.input"
            )

    def _is_floored(self, name: str) -> bool:
        student = self.run.student
        factors = [student.roundings[name].sigma]
        if name in student.inputs:
            factors.append(student.inputs[name].sigma)
        return any(bool((factor <= SCALE_FLOOR).any()) for factor in factors)

    def curve_point(self, step: int, terms: dict[str, float]) -> dict[str, Any]:
        """Return a point of the curves.

        It has the loss terms, the hardness of roundings (0 to 1), and the share of flipped codes.
        """
        roundings = [self.run.student.roundings[name] for name in self.part.layers]
        count = sum(rounding.alpha.numel() for rounding in roundings)
        hardness = sum(
            float((2 * soft(rounding.alpha.detach()) - 1).abs().sum()) for rounding in roundings
        )
        return {
            "step": step,
            **terms,
            "hardness": hardness / count,
            "flipped": sum(rounding.flipped() for rounding in roundings) / count,
        }

    def _check_finite(self, terms: dict[str, float], step: int) -> None:
        for name, value in terms.items():
            if math.isfinite(value):
                continue
            saved = self.run.resume.save(self.stage, step, self.optimizers)
            location = self.run.resume.location
            state = ""
            if saved and location:
                state = f" (the state before it is saved in {location.file})"
            raise SqError(
                f"{self.part.name}: {name} is {value} at step {step}: the same settings would end "
                "the same way, so lower quantizer.learn.rates, or check the weights and "
                f"calibration images{state}"
            )
