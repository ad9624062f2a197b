"""Training on labelled images: SGD with a cosine rate, random crops and flips, and distillation."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sq.config.constraints import Count, NotNegative, Portion, Positive, Whole
from sq.core.progress import say, track
from sq.core.wording import quantity
from sq.dataset.augmentation import Augment
from sq.dataset.training_feed import Crop, choose
from sq.errors import SqError
from sq.network.forward import forward
from sq.runtime.monte_carlo import drawing, seeded
from sq.storage.resume import Resume
from sq.training.baseline_timing import FullPrecisionBaseline, spending
from sq.training.quantized_network import QuantizedNetwork

FORECAST_STEPS = 3  # steps after which the remaining time is forecast again

Position = tuple[int, int]  # epoch, and step in the epoch


@dataclass(frozen=True)
class TrainingImages:
    """The number of training images, None for all, and the seed of all random draws."""

    count: int | None
    seed: int


@dataclass(frozen=True)
class Checkpoints:
    """Where the state of training is saved, to resume an interrupted run."""

    resume: Resume
    save_every: int  # steps


def train(  # noqa: PLR0913 (all but three are knobs, each a line of YAML)
    network: QuantizedNetwork,
    images: TrainingImages,
    checkpoints: Checkpoints,
    *,
    epochs: Whole,
    batch: Count,
    rate: Positive,
    momentum: Portion,
    decay: NotNegative,
    crop: Crop | None,
    move: Whole,
    mirror: bool,
    distill: Portion,
    temperature: Positive,
) -> dict[str, Any]:
    """Train `network` in place; return the curves, one row per epoch, and the time of steps.

    The report has the CPU seconds of a step, and those of a step in full precision (`plain`), which
    are timed in between.

    Parameters
    ----------
    epochs : passes over all images; images that do not fill a batch are left out, others in each
        epoch. 0 trains nothing
    batch : images in a step
    rate : first learning rate, which falls to 0 as a cosine
    momentum, decay : of SGD; steps of grids have no weight decay
    crop : least and largest share of an image that a random crop takes before it is resized
        (ImageNet); images are read again in each epoch. None reads whole images once and keeps them
        in memory
    move : pixels of the largest random shift, in each direction
    mirror : flip half of the images left to right
    distill : share of the loss that is the divergence from the logits in full precision; the rest
        is cross-entropy
    temperature : of both logits in that divergence

    Raises
    ------
    SqError : there are fewer images than a batch, see `sq.dataset.training_feed.choose`; a loss, a
        gradient or a trained value is NaN or infinite: step and epoch are named
    """
    feed = choose(network.problem, images.count, crop, images.seed)
    steps_per_epoch = feed.count // batch
    if not steps_per_epoch:
        raise SqError(
            f"{feed.count} training images are fewer than a batch of {batch}: set "
            f"quantizer.train.batch={feed.count}"
        )
    total = epochs * steps_per_epoch
    augment = Augment(network.problem.model, move, mirror)
    loss_function = _Loss(network.problem.model.net, distill, temperature)
    sgd = _Sgd(network, loss_function, batch, rate, momentum, decay)
    minutes = sgd.forecast() * total / 60
    say(
        f"{quantity(epochs, 'epoch')} of {quantity(steps_per_epoch, 'step')}: about {minutes:.1f} "
        "minutes, by one pass"
    )
    baseline = FullPrecisionBaseline(network.problem.model.net, total)
    resume = checkpoints.resume
    first = resume.begin(0, [sgd.optimizer]) or 0  # a single stage, number 0
    network.net.train()
    started = time.perf_counter()
    for step, x, y in track(feed.steps(batch, first, total), "training", total - first):
        position = divmod(step, steps_per_epoch)
        x = augment(x, seeded(images.seed, *position))
        # From 1 at the first step to 0 after the last.
        cosine = (1 + math.cos(math.pi * step / total)) / 2
        with (
            spending(resume.spent, "network"),
            drawing(images.seed, *position, device=x.device),
        ):
            loss, accuracy = sgd.step(x, y, rate * cosine, position)
        if baseline.is_due(step):
            # The same draws as above, for a dropout that both networks have.
            with drawing(images.seed, *position, device=x.device):
                baseline.step(x, y)
        _add_to_curves(
            resume.rows, position[0], loss / steps_per_epoch, 100 * accuracy / steps_per_epoch
        )
        if step + 1 - first == FORECAST_STEPS:
            _report_time_left(started, total - step - 1)
        if (step + 1) % checkpoints.save_every == 0:
            # Broken values must not replace the last good state.
            sgd.check_finite(position)
            resume.save(0, step + 1, [sgd.optimizer])
    sgd.check_finite((epochs, 0))
    network.net.eval()
    network.report_floored_scales()
    spent = resume.spent
    return {
        "images": feed.count,
        "steps": total,
        "steps_before_interruption": resume.before,
        "cpu_seconds": spent.cpu,
        "cpu_seconds_per_step": spent.cpu / max(spent.steps, 1),
        "plain_cpu_seconds_per_step": baseline.cpu_seconds(),
        "curves": resume.rows,
    }


def _report_time_left(started: float, steps_left: int) -> None:
    """Log a forecast of the remaining time, by the first steps of this process."""
    if steps_left > 0:
        seconds = (time.perf_counter() - started) / FORECAST_STEPS * steps_left
        say(f"about {seconds / 60:.1f} minutes more, by {quantity(FORECAST_STEPS, 'step')}")


def _add_to_curves(rows: list[dict[str, Any]], epoch: int, loss: float, top1: float) -> None:
    """Add the share of one step to the row of its epoch."""
    if epoch == len(rows):
        rows.append({"step": epoch, "loss": 0.0, "top1": 0.0})
    rows[epoch]["loss"] += loss
    rows[epoch]["top1"] += top1


class _Sgd:
    """SGD over all trained values, one step at a time."""

    def __init__(
        self,
        network: QuantizedNetwork,
        loss: _Loss,
        batch: int,
        rate: float,
        momentum: float,
        decay: float,
    ):
        self.network, self.loss = network, loss
        self.pass_seconds = self._time_a_pass(batch)
        groups = network.groups()  # needs the sizes of layer inputs, which the pass has counted
        self.trained = [group.parameter.requires_grad_() for group in groups]
        decayed = [group.parameter for group in groups if group.decays]
        others = [group.parameter for group in groups if not group.decays]
        options: list[dict[str, Any]] = []
        if decayed:
            options.append({"params": decayed, "weight_decay": decay})
        if others:
            options.append({"params": others, "weight_decay": 0.0})
        self.optimizer = torch.optim.SGD(options, lr=rate, momentum=momentum)
        # LSQ slows the gradients of steps.
        self.scaled = [group for group in groups if group.gradient_factor != 1]

    def _time_a_pass(self, batch: int) -> float:
        """Return the seconds of one forward pass in eval mode, which leaves BatchNorm unchanged."""
        x = self.network.problem.batch.x
        start = time.perf_counter()
        with torch.no_grad(), self.network.computing():
            forward(self.network.net, x[torch.arange(batch) % len(x)])
        return time.perf_counter() - start

    def forecast(self) -> float:
        """Return a forecast of the seconds of a step: one pass forward, and two as long back."""
        return 3 * self.pass_seconds

    def step(self, x: Tensor, y: Tensor, rate: float, position: Position) -> tuple[float, float]:
        """Take a step with learning rate `rate`; return the loss and the accuracy (0 to 1)."""
        for options in self.optimizer.param_groups:
            options["lr"] = rate
        self.optimizer.zero_grad()
        loss, accuracy = self._backward(x, y, position)
        for group in self.scaled:
            if group.parameter.grad is not None:
                group.parameter.grad.mul_(group.gradient_factor)
        norms = torch._foreach_norm([p.grad for p in self.trained if p.grad is not None])
        if not math.isfinite(float(torch.stack(norms).sum())):
            raise _divergence("a gradient is not finite", position)
        self.optimizer.step()
        self.network.clamp_scales()
        return loss, accuracy

    def _backward(self, x: Tensor, y: Tensor, position: Position) -> tuple[float, float]:
        """Compute the gradients of one step; return the loss and the accuracy (0 to 1)."""
        with torch.enable_grad(), self.network.computing():
            loss, correct = self.loss(forward(self.network.net, x), y, x)
            value = float(loss.detach())
            if not math.isfinite(value):
                raise _divergence(f"the loss is {value}", position)
            loss.backward()
        return value, correct / len(x)

    def check_finite(self, position: Position) -> None:
        """Raise an `SqError` if a trained value is not finite: it would replace the last state."""
        if not all(bool(torch.isfinite(parameter).all()) for parameter in self.trained):
            raise _divergence("a trained value is not finite", position)


def _divergence(fact: str, position: Position) -> SqError:
    epoch, step = position
    return SqError(
        f"training: {fact} at step {step} of epoch {epoch}: lower quantizer.train.rate, or check "
        "the training images; the last saved state stays"
    )


class _Loss:
    """Cross-entropy, and the divergence from the logits of the network in full precision.

    Parameters
    ----------
    teacher : the network in full precision
    share : of the divergence in the loss
    temperature : of both logits
    """

    def __init__(self, teacher: nn.Module, share: float, temperature: float):
        self.teacher, self.share, self.temperature = teacher, share, temperature

    def __call__(self, logits: Tensor, y: Tensor, x: Tensor) -> tuple[Tensor, int]:
        """Return the loss, and the number of correct predictions."""
        correct = int((logits.detach().argmax(1) == y).sum())
        loss = logits.new_zeros(())
        if self.share < 1:
            loss = (1 - self.share) * F.cross_entropy(logits, y)
        if self.share:
            with torch.no_grad():
                teacher = (forward(self.teacher, x) / self.temperature).log_softmax(1)
            student = (logits / self.temperature).log_softmax(1)
            divergence = F.kl_div(student, teacher, reduction="batchmean", log_target=True)
            # T^2 keeps the size of gradients independent of the temperature.
            loss = loss + self.share * self.temperature**2 * divergence
        return loss, correct
