"""Reconstruction: roundings, scales and biases learned so that a part of a network returns what it did.

One loop serves every method, which says what part (layer, block, network), what is compared, and at which rates.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from sq import schedule
from sq.console import track
from sq.draws import seeded
from sq.errors import SqError
from sq.knobs import Count, NotNegative, Portion, Whole
from sq.resume import Resume
from sq.rounding import Forward, regulariser, soft
from sq.schedule import Keep
from sq.student import Student

POINTS = 100  # of the curves of one stage, at most


# Of roundings, of biases, of the factors of the scales of weights (one a channel) and of what layers are fed (one a
# layer). What has rate 0, or none, is not learned.
Rates = dict[Literal["rounding", "bias", "scale", "input"], NotNegative]


@dataclass(frozen=True)
class Part:
    """What is reconstructed together.

    `error(index, generator)` runs the student on the images numbered `index` (B,), draws by `generator` what it draws,
    and returns what is to be small and, by layer, the weight of its regulariser.
    """

    name: str
    layers: list[str]
    error: Callable[[Tensor, torch.Generator], tuple[Tensor, dict[str, float]]]


@dataclass
class Session:
    """A student, what it has learned so far, and where that is kept."""

    student: Student
    resume: Resume
    images: int
    seed: int
    every: int  # steps between two writes of the state
    stages: int = 0
    steps: int = 0
    cpu: float = 0.0  # seconds that `taken` steps of this process took
    taken: int = 0
    seconds: dict[str, float] = field(default_factory=dict)  # by layer


Learn = Callable[[Session, Part], None]


def learn(  # noqa: PLR0913 (all but two are knobs, each a line of YAML)
    session: Session,
    part: Part,
    *,
    iterations: Whole,
    batch: Count,
    forward: Literal["soft", "hard"],
    optimizer: Literal["adam", "radam"],
    rates: Rates,
    weight: NotNegative,
    warm_up: Portion,
    early: bool,
    beta: tuple[float, float] | list[float],
    keep: Keep,
    share: Portion,
) -> None:
    """Learn the quantization of one part of a network.

    Parameters
    ----------
    session : changed in place; its student's network is not
    iterations : steps; 0 leaves all as it is
    batch : images in one step, of calibration images in an order drawn anew each time all were used
    forward : roundings in between 0 and 1 ("soft", as published), or 0 and 1 with gradients as if in between ("hard",
        straight-through: what is seen is what comes out, so that few steps suffice; all rates fall to 0 as a cosine
        then, or codes would flip to and fro to the end); without a rate they are fixed
    optimizer : of the roundings; all else takes Adam
    rates : of each kind of what is learned; that of inputs falls to 0 as a cosine
    weight : of the regulariser that makes roundings hard; it counts where roundings are soft
    warm_up : share of the steps in which the regulariser's exponent stays at its first value
    early : the regulariser counts in the warm-up too (EPTQ); AdaRound and BRECQ leave it out
    beta : the exponent at first and at last
    keep, share : how much of what layers are fed stays in full precision, see `sq.schedule.kept`

    Raises
    ------
    SqError : fewer images than a batch; a loss or a gradient that is NaN or infinite: the step and the term are named,
        and the last good state is kept
    """
    if batch > session.images:
        raise SqError(
            f"{session.images} calibration images are fewer than a batch of {batch}: set quantizer.learn.batch="
            f"{session.images} or less, or calibration.images={batch} or more"
        )
    stage, session.stages = session.stages, session.stages + 1
    began, cpu = time.perf_counter(), time.process_time()
    run = _Run(session, part, stage, _How(forward, optimizer, rates, keep, share))
    iterations = iterations if run.learned else 0  # inputs in full precision have no scale to learn
    first = session.resume.begin(stage, run.optimizers)
    first = iterations if first is None else first
    for step in track(range(first, iterations), part.name, iterations):
        t = step / max(iterations - 1, 1)
        index = _order(session, stage, step, batch)
        exponent = schedule.beta(t, beta[0], beta[1], warm_up)
        pressure = weight if early or t >= warm_up else 0.0
        about = run.step(step, t, index, exponent, pressure)
        if step % max(1, iterations // POINTS) == 0 or step == iterations - 1:
            session.resume.rows.append({"part": part.name, **run.point(step, about), "beta": exponent})
        if (step + 1) % session.every == 0:
            session.resume.save(stage, step + 1, run.optimizers)
    session.steps, session.taken = session.steps + iterations, session.taken + iterations - first
    session.cpu += time.process_time() - cpu
    for name in part.layers:
        spent = (time.perf_counter() - began) / len(part.layers)
        session.seconds[name] = session.seconds.get(name, 0.0) + spent


@dataclass(frozen=True)
class _How:
    """Knobs of `learn` that hold throughout a stage."""

    forward: Forward
    optimizer: str
    rates: Rates
    keep: Keep
    share: float


class _Run:
    """The optimisers of one stage, and one step of it."""

    def __init__(self, session: Session, part: Part, stage: int, how: _How):
        student, rates = session.student, how.rates
        self.session, self.part, self.stage, self.how = session, part, stage, how
        self.forward: Forward = how.forward if rates.get("rounding") else "fixed"
        own = [student.roundings[name] for name in part.layers]
        fed = [student.inputs[name] for name in part.layers if name in student.inputs]
        found: dict[Any, list[nn.Parameter]] = {
            "bias": [layer.bias for layer in own if layer.bias is not None],
            "scale": [layer.sigma for layer in own],
            "input": [quantizer.sigma for quantizer in fed],
        }
        student.values.requires_grad_(False)
        self.optimizers: list[torch.optim.Optimizer] = []
        if self.forward != "fixed":
            alphas = [layer.alpha.requires_grad_() for layer in own]
            made = torch.optim.RAdam(alphas) if how.optimizer == "radam" else torch.optim.Adam(alphas, fused=True)
            made.param_groups[0] |= {"lr": rates["rounding"], "first": rates["rounding"], "kind": "rounding"}
            self.optimizers.append(made)
        self.groups = [
            {"params": [p.requires_grad_() for p in params], "lr": rate, "first": rate, "kind": name}
            for name, params in found.items()
            if (rate := rates.get(name)) and params
        ]
        if self.groups:
            self.optimizers.append(torch.optim.Adam(self.groups, fused=True))
        self.learned = [p for o in self.optimizers for group in o.param_groups for p in group["params"]]

    def step(self, step: int, t: float, index: Tensor, exponent: float, pressure: float) -> dict[str, float]:
        """Take one step; return the terms of the loss before it, and how much was kept in full precision."""
        student, device = self.session.student, self.session.student.problem.batch.x.device
        generator = seeded(self.session.seed, self.stage, step, device=device)
        mix = schedule.mix(self.how.keep, t, self.how.share, generator)
        with torch.enable_grad(), student.lent(self.part.layers, self.forward, mix) as h:
            error, weights = self.part.error(index, generator)
            terms = {"error": error}
            if self.forward == "soft" and pressure:
                parts = [weights[name] * regulariser(own, exponent) for name, own in h.items()]
                terms["rounding"] = pressure * torch.stack(parts).sum()
            loss = torch.stack([*terms.values()]).sum()
        about = {name: float(term.detach()) for name, term in terms.items()} | {"kept": mix.share}
        self._check(about, step)
        gradients = torch.autograd.grad(loss, self.learned, allow_unused=True)
        self._check({"gradient": float(torch.stack([g.norm() for g in gradients if g is not None]).sum())}, step)
        for own, gradient in zip(self.learned, gradients, strict=True):
            own.grad = gradient
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                if group["kind"] == "input" or self.forward == "hard":
                    group["lr"] = group["first"] * (1 + math.cos(math.pi * t)) / 2
            optimizer.step()
        return about

    def point(self, step: int, about: dict[str, float]) -> dict[str, Any]:
        """Return one point of the curves: the terms, how hard roundings are (0 to 1), and which share has flipped."""
        own = [self.session.student.roundings[name] for name in self.part.layers]
        count = sum(layer.alpha.numel() for layer in own)
        hard = sum(float((2 * soft(layer.alpha.detach()) - 1).abs().sum()) for layer in own) / count
        return {"step": step, **about, "hardness": hard, "flipped": sum(layer.flipped() for layer in own) / count}

    def _check(self, terms: dict[str, float], step: int) -> None:
        for name, value in terms.items():
            if not math.isfinite(value):
                kept = self.session.resume.save(self.stage, step, self.optimizers)
                where = f"; the state before it is kept in {self.session.resume.file}" if kept else ""
                advice = "lower quantizer.learn.rates, or check the weights and calibration images"
                raise SqError(f"{self.part.name}: {name} is {value} at step {step}: {advice}{where}")


def _order(session: Session, stage: int, step: int, batch: int) -> Tensor:
    """Return the numbers (batch,) of the images of one step: each once before any is taken again."""
    every = session.images // batch  # steps in one order; what is left over waits for another
    order = torch.randperm(session.images, generator=seeded(session.seed, stage, -1 - step // every))
    return order[step % every * batch :][:batch]
