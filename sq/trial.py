"""Bits other than the allocation chose, measured: a run as it stands when bits are chosen, and what mixes lose."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sq import images as reading
from sq import oom, source
from sq.console import say, track
from sq.costs import Cost
from sq.errors import SqError
from sq.mixture import Mixture, Quantize
from sq.samples import Batch, Images
from sq.store import Kind, Store, name
from sq.types import Problem, digest

KIND = Kind("trials", "measuring them", ("losses",))  # of entries on disk
Mix = tuple[dict[str, int], dict[str, int]]  # bits of weights and of inputs, by layer name


@dataclass(frozen=True)
class Trial:
    """The problem with its bits, what they were said to cost, and what it takes to measure others."""

    problem: Problem
    cost: Cost
    quantize: Quantize
    images: Images  # the evaluation split
    batch_size: int | None
    store: Store  # where losses are kept for other runs
    origin: dict[str, Any]  # the settings that losses depend on, as the config has them
    front: list[dict[str, Any]] = field(default_factory=list)  # of an allocation that found one


@dataclass(frozen=True)
class Losses:
    """Of full precision, and of each mix: mean cross-entropy in nats an image, and top-1 accuracy in %."""

    full: tuple[float, float]
    mixes: list[tuple[float, float]]
    images: int
    cached: bool


def losses(trial: Trial, mixes: list[Mix], images: int) -> Losses:
    """Measure what `mixes` of bits lose, without any correction, unless another run has.

    They do not depend on the metric that priced the bits: runs that differ in it alone measure them once.

    Parameters
    ----------
    images : of the evaluation split, evenly spaced, at most

    Raises
    ------
    SqError : the evaluation images have no labels of classes; layers are solved for quantized inputs
    """
    if not isinstance(trial.images.y, Tensor):
        raise SqError("trials measure cross-entropy, which a detector has none of: set trials=none")
    every = len(trial.images.ids)
    places = torch.linspace(0, every - 1, min(images, every)).round().long().tolist()
    say(f"trials: {len(mixes)} bit assignments on {len(places)} images, unless another run has measured them")
    parts = [source.digest(), *_shaping(trial), mixes, places]

    def make() -> tuple[dict[str, Tensor], dict[str, Any]]:
        return {"losses": torch.tensor(_measure(trial, mixes, places), dtype=torch.float64)}, {}

    kept, _, cached = trial.store.kept(name([json.dumps(parts)]), KIND, make, torch.device("cpu"))
    full, *found = [(loss, top1) for loss, top1 in kept["losses"].tolist()]
    return Losses(full, found, len(places), cached)


def _shaping(trial: Trial) -> list[Any]:
    """Return what losses depend on beside code, mixes and images: settings, weights, statistics, machine."""
    problem = trial.problem
    left = {name: bits for name, bits in problem.bits.items() if name not in trial.cost.weights}
    machine = f"{problem.batch.x.device.type} {torch.__version__} {torch.get_num_threads()}"
    hashes = [problem.model.checkpoint, problem.statistics.digest(), digest([problem.batch.x])]
    return [trial.origin, hashes, left, machine]


def _measure(trial: Trial, mixes: list[Mix], places: list[int]) -> list[tuple[float, float]]:
    """Return loss and accuracy of full precision, then those of each of `mixes`."""
    problem = trial.problem
    batch = reading.load(trial.images, places, problem.model.prepare, "trial images")
    mixture = Mixture(problem, trial.quantize, trial.cost.weights)
    found = [_loss(problem.model.net, batch, trial.batch_size)]
    for weights, inputs in track(mixes, "trials", len(mixes)):
        found.append(_loss(mixture.set(weights, inputs), batch, trial.batch_size))
    return found


@torch.no_grad()
def _loss(net: nn.Module, batch: Batch, batch_size: int | None) -> tuple[float, float]:
    assert isinstance(batch.y, Tensor)
    device, loss, right = next(net.parameters()).device, 0.0, 0
    size = reading.together(batch.x.shape[1:], batch_size)
    for x, y in zip(batch.x.split(size), batch.y.split(size), strict=True):
        outputs = oom.forward("trials", lambda own: net(own.to(device)).cpu(), x)
        loss += float(F.cross_entropy(outputs.double(), y, reduction="sum"))
        right += int((outputs.argmax(1) == y).sum())
    return loss / len(batch.y), 100 * right / len(batch.y)
