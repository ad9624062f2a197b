"""Gradient descent on what a part of a network learns: its optimisers, and one step of them."""

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
from sq.learning.adaptive_step import AdaptiveInput
from sq.learning.learned_step import FLOOR
from sq.learning.schedules import Keep
from sq.learning.session import Part, Session
from sq.learning.soft_rounding import Forward, regulariser, soft
from sq.learning.student import Precision
from sq.runtime.monte_carlo import seeded

# Of roundings, of biases, of the factors of the scales of weights (one a channel) and of what
# layers are fed (one a layer), and of adapters, which are there if they are learned in any stage.
# What has rate 0, or none, is not learned.
Rates = dict[Literal["rounding", "bias", "scale", "input", "adapter"], NotNegative]


@dataclass(frozen=True)
class How:
    """Knobs of `learn` that hold throughout a stage."""

    forward: Forward
    optimizer: str
    rates: Rates
    keep: Keep
    share: float
    precision: Precision


class Descent:
    """The optimisers of one stage, and one step of it."""

    def __init__(self, session: Session, part: Part, stage: int, how: How):
        student, rates = session.student, how.rates
        self.session, self.part, self.stage, self.how = session, part, stage, how
        self.forward: Forward = how.forward if rates.get("rounding") else "fixed"
        own = [student.roundings[name] for name in part.layers]
        fed = [student.inputs[name] for name in part.layers if name in student.inputs]
        found: dict[Any, list[nn.Parameter]] = {
            "bias": [layer.bias for layer in own if layer.bias is not None],
            "scale": [layer.sigma for layer in own],
            "input": [quantizer.sigma for quantizer in fed],
            "adapter": [
                p for one in fed if isinstance(one, AdaptiveInput) for p in one.adapter.trained()
            ],
        }
        student.precision = how.precision
        student.values.requires_grad_(False)
        self.optimizers: list[torch.optim.Optimizer] = []
        if self.forward != "fixed":
            alphas = [layer.alpha.requires_grad_() for layer in own]
            made = (
                torch.optim.RAdam(alphas)
                if how.optimizer == "radam"
                else torch.optim.Adam(alphas, fused=True)
            )
            made.param_groups[0] |= {
                "lr": rates["rounding"],
                "first": rates["rounding"],
                "kind": "rounding",
            }
            self.optimizers.append(made)
        self.groups: list[dict[str, Any]] = [
            {
                "params": [p.requires_grad_() for p in params],
                "lr": rate,
                "first": rate,
                "kind": name,
            }
            for name, params in found.items()
            if (rate := rates.get(name)) and params
        ]
        if self.groups:
            self.optimizers.append(torch.optim.Adam(self.groups, fused=True))
        self.factors = [
            p
            for group in self.groups
            if group["kind"] in ("scale", "input")
            for p in group["params"]
        ]
        self.learned = [
            p for o in self.optimizers for group in o.param_groups for p in group["params"]
        ]

    def step(
        self, step: int, t: float, index: Tensor, exponent: float, pressure: float
    ) -> dict[str, float]:
        """Take one step; return the terms of the loss before it, and how much was kept in full precision."""
        student, device = self.session.student, self.session.student.problem.batch.x.device
        generator = seeded(self.session.seed, self.stage, step, device=device)
        mix = schedules.mix(self.how.keep, t, self.how.share, generator)
        with torch.enable_grad(), student.lent(self.part.layers, self.forward, mix) as h:
            error, weights = self.part.error(index, generator)
            terms = {"error": error}
            if self.forward == "soft" and pressure:
                parts = [weights[name] * regulariser(own, exponent) for name, own in h.items()]
                terms["rounding"] = pressure * torch.stack(parts).sum()
            loss = torch.stack([*terms.values()]).sum()
        about = {name: float(term.detach()) for name, term in terms.items()} | {"kept": mix.share}
        self._check(about, step)
        # inputs alone are learned, and all of them is in full precision yet
        if not loss.requires_grad:
            return about
        gradients = torch.autograd.grad(loss, self.learned, allow_unused=True)
        self._check(
            {"gradient": float(torch.stack([g.norm() for g in gradients if g is not None]).sum())},
            step,
        )
        for own, gradient in zip(self.learned, gradients, strict=True):
            own.grad = gradient
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                if group["kind"] in ("input", "adapter") or self.forward == "hard":
                    group["lr"] = group["first"] * (1 + math.cos(math.pi * t)) / 2
            optimizer.step()
        with torch.no_grad():
            # of scales: a step too long must not turn the signs of weights or inputs
            for factor in self.factors:
                factor.clamp_(min=FLOOR)
        return about

    def tell_floored(self) -> None:
        """Say which factors of scales ended as low as they may."""
        if low := [name for name in self.part.layers if self._floored(name)]:
            say(
                f"{self.part.name}: factors of scales of {quantity(low, 'layer')} ended at {FLOOR:g}, the least "
                f"allowed ({', '.join(low[:3])}): lower quantizer.learn.rates.scale and rates.input"
            )

    def _floored(self, name: str) -> bool:
        student = self.session.student
        own = [student.roundings[name].sigma] + (
            [student.inputs[name].sigma] if name in student.inputs else []
        )
        return any(bool((factor <= FLOOR).any()) for factor in own)

    def point(self, step: int, about: dict[str, float]) -> dict[str, Any]:
        """Return one point of the curves: the terms, how hard roundings are (0 to 1), and which share has flipped."""
        own = [self.session.student.roundings[name] for name in self.part.layers]
        count = sum(layer.alpha.numel() for layer in own)
        hard = sum(float((2 * soft(layer.alpha.detach()) - 1).abs().sum()) for layer in own) / count
        return {
            "step": step,
            **about,
            "hardness": hard,
            "flipped": sum(layer.flipped() for layer in own) / count,
        }

    def _check(self, terms: dict[str, float], step: int) -> None:
        for name, value in terms.items():
            if not math.isfinite(value):
                kept = self.session.resume.save(self.stage, step, self.optimizers)
                place = self.session.resume.location
                where = (
                    f" (the state before it is kept in {place.file}, to look into)"
                    if kept and place
                    else ""
                )
                raise SqError(
                    f"{self.part.name}: {name} is {value} at step {step}: the same settings would come to the same, so "
                    f"lower quantizer.learn.rates, or check the weights and calibration images{where}"
                )
