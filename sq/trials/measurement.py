"""Bits other than the allocation chose, measured: a run as it stands when bits are chosen, and what mixes lose."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sq.core.progress import say, track
from sq.core.wording import quantity
from sq.dataset import loading as reading
from sq.errors import SqError
from sq.network.forward import forward
from sq.runtime import batching, out_of_memory
from sq.storage.store import Kind, Store, code_hash, describe, name, rounding
from sq.trials.bit_switching import Mixture, Quantize
from sq.types.costs import Cost
from sq.types.images import Batch, Images
from sq.types.problem import Problem, digest

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

    They follow from the quantized weights of each width: runs that differ in what priced the bits,
    or in images that the quantizer makes no use of, measure them once.

    Parameters
    ----------
    images : of the evaluation split, evenly spaced, at most

    Raises
    ------
    SqError : the evaluation images have no labels of classes; layers are solved for quantized
    inputs
    """
    if not isinstance(trial.images.y, Tensor):
        raise SqError("trials measure cross-entropy, which a detector has none of: set trials=none")
    every = len(trial.images.ids)
    places = torch.linspace(0, every - 1, min(images, every)).round().long().tolist()
    assignments = quantity(mixes, "bit assignment")
    say(
        f"trials: {assignments} on {quantity(places, 'image')}, unless another run has measured them"
    )
    batch = reading.load(trial.images, places, trial.problem.model.prepare, "trial images")
    mixture = Mixture(trial.problem, trial.quantize, trial.cost.weights)
    parts = [code_hash(), trial.store.origin, *_content(trial, mixture, batch), mixes]

    def make() -> tuple[dict[str, Tensor], dict[str, Any]]:
        return {
            "losses": torch.tensor(_measure(trial, mixture, batch, mixes), dtype=torch.float64)
        }, {}

    kept, _, cached = trial.store.get_or_compute(
        name([json.dumps(parts)]), KIND, make, torch.device("cpu")
    )
    full, *found = [(loss, top1) for loss, top1 in kept["losses"].tolist()]
    return Losses(full, found, len(places), cached)


def _content(trial: Trial, mixture: Mixture, batch: Batch) -> list[Any]:
    """Return what losses depend on beside code and mixes: network, weights of each width, grids, images, machine."""
    problem = trial.problem
    assert isinstance(batch.y, Tensor)
    grids = dict(problem.activations)
    for layer, row in trial.cost.inputs.items():
        grids |= {f"{layer} {bits}": problem.inputs.grid(layer, bits) for bits in row}
    values = digest(weight for row in mixture.values.values() for weight in row.values())
    levels = digest(grid.decode(torch.arange(grid.levels)) for grid in grids.values())
    code, state = describe(problem.model)
    others = [
        w
        for name, w in mixture.net.state_dict().items()
        if name.removesuffix(".weight") not in mixture.values
    ]
    return [
        code,
        state,
        digest(others),
        values,
        list(grids),
        levels,
        digest([batch.x, batch.y]),
        rounding(batch.x.device),
    ]


def _measure(
    trial: Trial, mixture: Mixture, batch: Batch, mixes: list[Mix]
) -> list[tuple[float, float]]:
    """Return loss and accuracy of full precision, then those of each of `mixes`."""
    found = [_loss(trial.problem.model.net, batch, trial.batch_size)]
    for weights, inputs in track(mixes, "trials", len(mixes)):
        found.append(_loss(mixture.set(weights, inputs), batch, trial.batch_size))
    return found


@torch.no_grad()
def _loss(net: nn.Module, batch: Batch, batch_size: int | None) -> tuple[float, float]:
    assert isinstance(batch.y, Tensor)
    device, loss, right = next(net.parameters()).device, 0.0, 0
    size = batching.images_per_pass(batch.x.shape[1:], batch_size)
    for x, y in zip(batch.x.split(size), batch.y.split(size), strict=True):
        outputs = out_of_memory.forward("trials", lambda own: forward(net, own.to(device)).cpu(), x)
        loss += float(F.cross_entropy(outputs.double(), y, reduction="sum"))
        right += int((outputs.argmax(1) == y).sum())
    return loss / len(batch.y), 100 * right / len(batch.y)
