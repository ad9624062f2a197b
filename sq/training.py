"""Training a network on labelled images: SGD with a cosine, images moved and mirrored, full precision as a teacher."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sq import augment
from sq.console import say, track
from sq.draws import seeded
from sq.errors import SqError
from sq.feed import Crop, choose
from sq.knobs import Count, NotNegative, Portion, Positive, Whole
from sq.pace import Plain, spending
from sq.resume import Resume
from sq.trainee import Trainee
from sq.types import Model

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
    epochs : times that every image is seen, but for those that do not fill a batch, which are others each time; 0
        trains nothing
    batch : images in a step
    rate : learning rate at first, which falls to 0 as a cosine
    momentum, decay : of SGD; steps of grids do not decay
    crop : least and largest share of an image that is taken at random and resized, images being read anew each epoch
        (ImageNet); None reads them once, whole, and keeps them in memory
    move : pixels that an image is moved by at most, each way
    mirror : half of the images are turned left to right
    distill : share of the loss that is the divergence from full precision's answers, the rest is cross-entropy
    temperature : of both answers in that divergence

    Raises
    ------
    SqError : fewer images than a batch, see `sq.feed.choose`; a loss that is NaN or infinite: step and epoch are named
    """
    feed = choose(trainee.problem, wanted.images, crop, wanted.seed)
    steps = feed.count // batch
    if not steps:
        raise SqError(
            f"{feed.count} training images are fewer than a batch of {batch}: set quantizer.train.batch={feed.count}"
        )
    own = _Steps(trainee, _Augment(trainee.problem.model, move, mirror), _Loss(trainee, distill, temperature))
    optimizer, factors = _optimizer(trainee, batch, rate, momentum, decay)
    total, rows, spent = epochs * steps, kept.resume.rows, kept.resume.spent
    plain = Plain(trainee.problem.model.net, total)
    first = kept.resume.begin(0, [optimizer]) or 0
    trainee.net.train()
    given = feed.steps(batch, first, total)
    for step, (x, y) in track(enumerate(given, first), "training", total - first):
        x = own.augment(x, seeded(wanted.seed, *divmod(step, steps)))
        with spending(spent, "network"):
            for group in optimizer.param_groups:
                group["lr"] = rate * (1 + math.cos(math.pi * step / total)) / 2
            optimizer.zero_grad()
            loss, right = own.backward(x, y, *divmod(step, steps))
            for parameter, factor in factors:
                if parameter.grad is not None:
                    parameter.grad.mul_(factor)
            optimizer.step()
        if plain.due(step):
            plain.step(x, y)
        _count(rows, step // steps, loss / steps, 100 * right / steps)
        if step + 1 - first == TIMED and total > step + 1:
            left = spent.seconds["network"] / spent.steps * (total - step - 1)
            say(f"{epochs} epochs of {steps} steps: about {left / 60:.1f} minutes more")
        if (step + 1) % kept.every == 0 or step + 1 == total:
            kept.resume.save(0, step + 1, [optimizer])
    trainee.net.eval()
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


class _Augment:
    """What is done to the images of a step."""

    def __init__(self, model: Model, move: int, mirror: bool):
        lowest = model.span[0]
        self.move, self.mirror = move, mirror
        self.black = torch.tensor(lowest if len(lowest) > 1 else lowest * model.input[0])

    def __call__(self, x: Tensor, draw: torch.Generator) -> Tensor:
        x = augment.move(x, self.move, self.black, draw) if self.move else x
        x = augment.mirror(x, draw) if self.mirror else x
        return x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x


@dataclass(frozen=True)
class _Steps:
    """One step: what is done to its images, and the gradients they leave."""

    trainee: Trainee
    augment: _Augment
    loss: _Loss

    def backward(self, x: Tensor, y: Tensor, epoch: int, place: int) -> tuple[float, float]:
        """Leave the gradients of one step; return the loss, and the share of right answers."""
        with torch.enable_grad(), self.trainee.computing():
            loss, right = self.loss(self.trainee.net(x), y, x)
            if not math.isfinite(float(loss.detach())):
                raise SqError(
                    f"training: the loss is {float(loss.detach())} at step {place} of epoch {epoch}: lower "
                    "quantizer.train.rate, or check the training images; the last state that was kept stays"
                )
            loss.backward()
        return float(loss.detach()), right / len(x)


def _optimizer(
    trainee: Trainee, batch: int, rate: float, momentum: float, decay: float
) -> tuple[torch.optim.Optimizer, list[tuple[nn.Parameter, float]]]:
    """Return SGD over all that is trained, and what some gradients are multiplied with."""
    x = trainee.problem.batch.x
    with torch.no_grad(), trainee.computing():
        trainee.net(
            x[torch.arange(batch) % len(x)]
        )  # in eval mode yet: it counts what layers are fed, and leaves BatchNorm alone
    groups = trainee.groups()
    parts = [
        {"params": [p for p, _, decays in groups if decays is wanted], "weight_decay": decay if wanted else 0.0}
        for wanted in (True, False)
    ]
    for parameter, _, _ in groups:
        parameter.requires_grad_()
    made = torch.optim.SGD([part for part in parts if part["params"]], lr=rate, momentum=momentum)
    return made, [(parameter, factor) for parameter, factor, _ in groups if factor != 1]


class _Loss:
    """Cross-entropy, and the divergence from what full precision answers to the same images."""

    def __init__(self, trainee: Trainee, share: float, temperature: float):
        self.teacher, self.share, self.temperature = trainee.problem.model.net, share, temperature

    def __call__(self, logits: Tensor, y: Tensor, x: Tensor) -> tuple[Tensor, int]:
        """Return the loss, and how many answers are right."""
        right = int((logits.detach().argmax(1) == y).sum())
        loss = (1 - self.share) * F.cross_entropy(logits, y) if self.share < 1 else logits.new_zeros(())
        if self.share:
            with torch.no_grad():
                wanted = (self.teacher(x) / self.temperature).log_softmax(1)
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
