"""Measure the loss of bit assignments other than the one that the allocation chose."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sq.core.progress import say, track
from sq.core.wording import quantity
from sq.dataset import loading
from sq.errors import SqError
from sq.network.forward import forward
from sq.runtime import batching, out_of_memory
from sq.storage.store import Kind, Store, code_hash, describe, name, rounding
from sq.trials.bit_switching import Quantize, SwitchableNetwork
from sq.types.costs import Cost
from sq.types.images import Batch, Images
from sq.types.problem import Grid, Problem, digest

KIND = Kind("trials", "measuring them", ("losses",))  # of entries on disk
# Bits of weights and of inputs, by layer name.
BitAssignment = tuple[dict[str, int], dict[str, int]]


@dataclass(frozen=True)
class Trial:
    """A run at the time when its bits are chosen, with what it takes to measure other bits."""

    problem: Problem  # with the bits chosen
    cost: Cost
    quantize: Quantize
    images: Images  # the evaluation split
    batch_size: int | None
    store: Store  # in which losses are cached for other runs
    front: list[dict[str, Any]] = field(default_factory=list)  # of an allocation that found one


@dataclass(frozen=True)
class Losses:
    """Mean cross-entropy in nats per image, and top-1 accuracy in %."""

    full: tuple[float, float]  # of full precision
    assignments: list[tuple[float, float]]
    images: int
    cached: bool  # another run had measured them


def losses(trial: Trial, assignments: list[BitAssignment], images: int) -> Losses:
    """Measure the loss of bit `assignments`, without any correction, unless another run has.

    They follow from the quantized weights of each width. So runs that differ in the sensitivity, or
    in images that the quantizer does not use, share one measurement.

    Parameters
    ----------
    images : of the evaluation split, evenly spaced, at most

    Raises
    ------
    SqError : the evaluation images have no class labels; layers are solved for quantized inputs
    """
    if not isinstance(trial.images.y, Tensor):
        raise SqError("trials measure cross-entropy, which a detector has none of: set trials=none")
    count = len(trial.images.ids)
    indices = torch.linspace(0, count - 1, min(images, count)).round().long().tolist()
    say(
        f"trials: {quantity(assignments, 'bit assignment')} on {quantity(indices, 'image')}, "
        "unless another run has measured them"
    )
    batch = loading.load(trial.images, indices, trial.problem.model.prepare, "trial images")
    network = SwitchableNetwork(trial.problem, trial.quantize, trial.cost.weights)
    key = [
        code_hash(),
        trial.store.origin,
        *_dependencies(trial, network, batch),
        assignments,
    ]

    def measure() -> tuple[dict[str, Tensor], dict[str, Any]]:
        values = _measure(trial, network, batch, assignments)
        return {"losses": torch.tensor(values, dtype=torch.float64)}, {}

    entry, _, cached = trial.store.get_or_compute(
        name([json.dumps(key)]), KIND, measure, torch.device("cpu")
    )
    # Full precision comes first.
    full, *others = [(loss, top1) for loss, top1 in entry["losses"].tolist()]
    return Losses(full, others, len(indices), cached)


def _dependencies(trial: Trial, network: SwitchableNetwork, batch: Batch) -> list[Any]:
    """Return what losses depend on, apart from code and assignments, as part of a key."""
    problem = trial.problem
    assert isinstance(batch.y, Tensor)
    code, state = describe(problem.model)
    # Biases, BatchNorm and layers in full precision.
    other_parameters = [
        tensor
        for key, tensor in network.net.state_dict().items()
        if key.removesuffix(".weight") not in network.weights
    ]
    weights: list[Tensor] = []
    for layer_weights in network.weights.values():
        weights += layer_weights.values()
    grids = _input_grids(trial)
    levels = [grid.decode(torch.arange(grid.levels)) for grid in grids.values()]
    return [
        code,
        state,
        digest(other_parameters),
        digest(weights),
        list(grids),
        digest(levels),
        digest([batch.x, batch.y]),
        rounding(batch.x.device),
    ]


def _input_grids(trial: Trial) -> dict[str, Grid]:
    """Return the grids of inputs, those of each width that an assignment may have included."""
    grids = dict(trial.problem.activations)
    for layer, row in trial.cost.inputs.items():
        for bits in row:
            grids[f"{layer} {bits}"] = trial.problem.inputs.grid(layer, bits)
    return grids


def _measure(
    trial: Trial, network: SwitchableNetwork, batch: Batch, assignments: list[BitAssignment]
) -> list[tuple[float, float]]:
    """Return loss and accuracy of full precision, then those of each of `assignments`."""
    results = [_loss(trial.problem.model.net, batch, trial.batch_size)]
    for weights, inputs in track(assignments, "trials", len(assignments)):
        results.append(_loss(network.set(weights, inputs), batch, trial.batch_size))
    return results


@torch.no_grad()
def _loss(net: nn.Module, batch: Batch, batch_size: int | None) -> tuple[float, float]:
    """Return the mean cross-entropy, and the top-1 accuracy in %."""
    assert isinstance(batch.y, Tensor)
    device = next(net.parameters()).device

    def run(images: Tensor) -> Tensor:
        return forward(net, images.to(device)).cpu()

    total_loss, correct = 0.0, 0
    size = batching.images_per_pass(batch.x.shape[1:], batch_size)
    for x, y in zip(batch.x.split(size), batch.y.split(size), strict=True):
        outputs = out_of_memory.forward("trials", run, x)
        total_loss += float(F.cross_entropy(outputs.double(), y, reduction="sum"))
        correct += int((outputs.argmax(1) == y).sum())
    return total_loss / len(batch.y), 100 * correct / len(batch.y)
