"""Training a network on labelled images: SGD with a cosine, images moved and mirrored, full precision as a teacher."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sq import augment
from sq.console import say, track
from sq.draws import seeded
from sq.errors import SqError
from sq.knobs import Count, NotNegative, Portion, Positive, Whole
from sq.samples import Batch
from sq.trainee import Trainee

TIMED = 3  # steps after which what is left is told


@dataclass(frozen=True)
class Images:
    """Training images in memory, what black is for the network, and the seed of their order and of what is drawn."""

    batch: Batch
    black: Tensor  # (C,)
    seed: int


def train(  # noqa: PLR0913 (all but two are knobs, each a line of YAML)
    trainee: Trainee,
    images: Images,
    *,
    epochs: Whole,
    batch: Count,
    rate: Positive,
    momentum: Portion,
    decay: NotNegative,
    move: Whole,
    mirror: bool,
    distill: Portion,
    temperature: Positive,
) -> list[dict[str, Any]]:
    """Train all that `trainee` has, in place; return the curves, one row an epoch.

    Parameters
    ----------
    epochs : times that every image is seen, but for those that do not fill a batch, which are others each time; 0
        trains nothing
    batch : images in a step
    rate : learning rate at first, which falls to 0 as a cosine
    momentum, decay : of SGD; steps of grids do not decay
    move : pixels that an image is moved by at most, each way
    mirror : half of the images are turned left to right
    distill : share of the loss that is the divergence from full precision's answers, the rest is cross-entropy
    temperature : of both answers in that divergence

    Raises
    ------
    SqError : fewer images than a batch; a loss that is NaN or infinite: step and epoch are named
    """
    x, y = images.batch.x, images.batch.y
    assert isinstance(y, Tensor)
    steps = len(x) // batch
    if not steps:
        raise SqError(f"{len(x)} training images are fewer than a batch of {batch}: set quantizer.train.batch={len(x)}")
    optimizer, factors = _optimizer(trainee, x[:batch], rate, momentum, decay)
    teacher = _Loss(trainee.problem.model.net, distill, temperature)
    rows: list[dict[str, Any]] = []
    began = time.perf_counter()
    trainee.net.train()
    for step in track(range(epochs * steps), "training"):
        epoch, place = divmod(step, steps)
        draw = seeded(images.seed, step)
        index = torch.randperm(len(x), generator=seeded(images.seed, -1 - epoch))[place * batch :][:batch]
        given = augment.move(x[index], move, images.black, draw) if move else x[index]
        given = augment.mirror(given, draw) if mirror else given
        given = given.contiguous(memory_format=torch.channels_last)
        for group in optimizer.param_groups:
            group["lr"] = rate * (1 + math.cos(math.pi * step / (epochs * steps))) / 2
        with torch.enable_grad(), trainee.computing():
            loss, right = teacher(trainee.net(given), y[index], given)
            if not math.isfinite(float(loss.detach())):
                raise SqError(
                    f"training: the loss is {float(loss.detach())} at step {place} of epoch {epoch}: lower "
                    f"quantizer.train.rate={rate:g}, or check the training images"
                )
            optimizer.zero_grad()
            loss.backward()
        for parameter, factor in factors:
            if parameter.grad is not None:
                parameter.grad.mul_(factor)
        optimizer.step()
        _count(rows, epoch, float(loss.detach()), right / len(index), steps)
        if step + 1 == TIMED and epochs * steps > TIMED:
            left = (time.perf_counter() - began) / TIMED * (epochs * steps - TIMED)
            say(f"{epochs} epochs of {steps} steps: about {left / 60:.1f} minutes more")
    trainee.net.eval()
    return rows


def _optimizer(
    trainee: Trainee, x: Tensor, rate: float, momentum: float, decay: float
) -> tuple[torch.optim.Optimizer, list[tuple[nn.Parameter, float]]]:
    """Return SGD over all that is trained, and what some gradients are multiplied with."""
    with torch.no_grad(), trainee.computing():
        trainee.net(x)  # in eval mode yet: it counts what layers are fed, and leaves BatchNorm alone
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

    def __init__(self, teacher: Callable[[Tensor], Tensor], share: float, temperature: float):
        self.teacher, self.share, self.temperature = teacher, share, temperature

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


def _count(rows: list[dict[str, Any]], epoch: int, loss: float, right: float, steps: int) -> None:
    if epoch == len(rows):
        rows.append({"step": epoch, "loss": 0.0, "top1": 0.0})
    rows[epoch]["loss"] += loss / steps
    rows[epoch]["top1"] += 100 * right / steps
