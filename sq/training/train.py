"""Training a network on labelled images: SGD with a cosine, images moved and mirrored, full precision as a teacher."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
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
from sq.training.baseline_timing import Plain, spending
from sq.training.quantized_network import Trainee

TIMED = 3  # steps after which what is left is told


@dataclass(frozen=True)
class Wanted:
    """How many images of the training split, None for all, and the seed of all that is drawn of them."""

    images: int | None
    seed: int


@dataclass(frozen=True)
class Kept:
    """Where training is kept, to be taken up where it was left."""

    resume: Resume
    every: int  # steps between two writes


def train(  # noqa: PLR0913 (all but three are knobs, each a line of YAML)
    trainee: Trainee,
    wanted: Wanted,
    kept: Kept,
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
    """Train all that `trainee` has, in place; return the curves, one row an epoch, and what steps took.

    Beside CPU seconds of a step are those of a step in full precision (`plain`), timed in between.

    Parameters
    ----------
    epochs : times that every image is seen, but for those that do not fill a batch, which are
    others each time; 0
        trains nothing
    batch : images in a step
    rate : learning rate at first, which falls to 0 as a cosine
    momentum, decay : of SGD; steps of grids do not decay
    crop : least and largest share of an image that is taken at random and resized, images being
    read anew each epoch
        (ImageNet); None reads them once, whole, and keeps them in memory
    move : pixels that an image is moved by at most, each way
    mirror : half of the images are turned left to right
    distill : share of the loss that is the divergence from full precision's answers, the rest is
    cross-entropy
    temperature : of both answers in that divergence

    Raises
    ------
    SqError : fewer images than a batch, see `sq.dataset.training_feed.choose`; a loss, a gradient
    or what is
        trained that is NaN or infinite: step and epoch are named
    """
    feed = choose(trainee.problem, wanted.images, crop, wanted.seed)
    steps = feed.count // batch
    if not steps:
        raise SqError(
            f"{feed.count} training images are fewer than a batch of {batch}: set quantizer.train.batch={feed.count}"
        )
    total, rows, spent = epochs * steps, kept.resume.rows, kept.resume.spent
    augmented = Augment(trainee.problem.model, move, mirror)
    own = _Steps(trainee, _Loss(trainee, distill, temperature), batch, rate, momentum, decay)
    minutes = own.forecast() * total / 60
    say(
        f"{quantity(epochs, 'epoch')} of {quantity(steps, 'step')}: about {minutes:.1f} minutes, by one pass"
    )
    plain = Plain(trainee.problem.model.net, total)
    first = kept.resume.begin(0, [own.optimizer]) or 0
    trainee.net.train()
    began = time.perf_counter()
    for step, x, y in track(feed.steps(batch, first, total), "training", total - first):
        place = divmod(step, steps)
        x = augmented(x, seeded(wanted.seed, *place))
        with spending(spent, "network"), drawing(wanted.seed, *place, device=x.device):
            loss, right = own.take(x, y, (1 + math.cos(math.pi * step / total)) / 2, place)
        if plain.due(step):
            with drawing(wanted.seed, *place, device=x.device):
                plain.step(x, y)
        _count(rows, place[0], loss / steps, 100 * right / steps)
        if step + 1 - first == TIMED and total > step + 1:
            left = (time.perf_counter() - began) / TIMED * (total - step - 1)
            say(f"about {left / 60:.1f} minutes more, by {quantity(TIMED, 'step')}")
        if (step + 1) % kept.every == 0:
            own.check_values(place)
            kept.resume.save(0, step + 1, [own.optimizer])
    own.check_values((epochs, 0))
    trainee.net.eval()
    trainee.tell_floored()
    cpu = {
        "cpu_seconds": spent.cpu,
        "cpu_seconds_per_step": spent.cpu / max(spent.steps, 1),
        "plain_cpu_seconds_per_step": plain.cpu_seconds(),
    }
    return {
        "images": feed.count,
        "steps": total,
        "steps_before_interruption": kept.resume.before,
        **cpu,
        "curves": rows,
    }


class _Steps:
    """SGD over all that is trained, a step at a time."""

    def __init__(
        self, trainee: Trainee, loss: _Loss, batch: int, rate: float, momentum: float, decay: float
    ):
        self.trainee, self.loss, self.rate = trainee, loss, rate
        x = trainee.problem.batch.x
        start = time.perf_counter()
        with torch.no_grad(), trainee.computing():
            # In eval mode yet: it counts what layers are fed, and leaves BatchNorm alone.
            forward(trainee.net, x[torch.arange(batch) % len(x)])
        self.pass_seconds = time.perf_counter() - start
        groups = trainee.groups()
        parts = [
            {
                "params": [p for p, _, decays in groups if decays is wanted],
                "weight_decay": decay if wanted else 0.0,
            }
            for wanted in (True, False)
        ]
        self.trained = [parameter.requires_grad_() for parameter, _, _ in groups]
        self.optimizer = torch.optim.SGD(
            [part for part in parts if part["params"]], lr=rate, momentum=momentum
        )
        self.factors = [(parameter, factor) for parameter, factor, _ in groups if factor != 1]

    def forecast(self) -> float:
        """Return about how many seconds a step takes: a pass forward, and two as long back."""
        return 3 * self.pass_seconds

    def take(
        self, x: Tensor, y: Tensor, share: float, place: tuple[int, int]
    ) -> tuple[float, float]:
        """Take the step at an epoch and `place`, with a share of the rate; return loss and share of right answers."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate * share
        self.optimizer.zero_grad()
        loss, right = self.backward(x, y, place)
        for parameter, factor in self.factors:
            if parameter.grad is not None:
                parameter.grad.mul_(factor)
        norms = torch._foreach_norm([p.grad for p in self.trained if p.grad is not None])
        if not math.isfinite(float(torch.stack(norms).sum())):
            raise _diverged("a gradient is not finite", place)
        self.optimizer.step()
        self.trainee.hold()
        return loss, right

    def backward(self, x: Tensor, y: Tensor, place: tuple[int, int]) -> tuple[float, float]:
        """Leave the gradients of one step; return the loss, and the share of right answers."""
        with torch.enable_grad(), self.trainee.computing():
            loss, right = self.loss(forward(self.trainee.net, x), y, x)
            if not math.isfinite(value := float(loss.detach())):
                raise _diverged(f"the loss is {value}", place)
            loss.backward()
        return value, right / len(x)

    def check_values(self, place: tuple[int, int]) -> None:
        """Raise an `SqError` if anything that is trained is not finite: it must not take the place of what was kept."""
        if not all(bool(torch.isfinite(p).all()) for p in self.trained):
            raise _diverged("what is trained is not finite", place)


def _diverged(what: str, place: tuple[int, int]) -> SqError:
    return SqError(
        f"training: {what} at step {place[1]} of epoch {place[0]}: lower quantizer.train.rate, or check the training "
        "images; the last state that was kept stays"
    )


class _Loss:
    """Cross-entropy, and the divergence from what full precision answers to the same images."""

    def __init__(self, trainee: Trainee, share: float, temperature: float):
        self.teacher, self.share, self.temperature = trainee.problem.model.net, share, temperature

    def __call__(self, logits: Tensor, y: Tensor, x: Tensor) -> tuple[Tensor, int]:
        """Return the loss, and how many answers are right."""
        right = int((logits.detach().argmax(1) == y).sum())
        loss = (
            (1 - self.share) * F.cross_entropy(logits, y)
            if self.share < 1
            else logits.new_zeros(())
        )
        if self.share:
            with torch.no_grad():
                wanted = (forward(self.teacher, x) / self.temperature).log_softmax(1)
            own = (logits / self.temperature).log_softmax(1)
            apart = F.kl_div(own, wanted, reduction="batchmean", log_target=True)
            loss = loss + self.share * self.temperature**2 * apart
        return loss, right


def _count(rows: list[dict[str, Any]], epoch: int, loss: float, top1: float) -> None:
    """Add a step's share to the row of its epoch."""
    if epoch == len(rows):
        rows.append({"step": epoch, "loss": 0.0, "top1": 0.0})
    rows[epoch]["loss"] += loss
    rows[epoch]["top1"] += top1
