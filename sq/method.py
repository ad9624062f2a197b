"""Quantizing a network with everything a method is made of, from statistics to correction: no images are evaluated."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from sq import cache, ends, importance, resources
from sq.clock import Clock
from sq.costs import Budget, Cost, Widths
from sq.network import gradients
from sq.samples import Calibration, Images
from sq.store import Store
from sq.types import Model, Problem, QuantizedModel


@dataclass(frozen=True)
class Given:
    """A network, settled (see `sq.trace`), its calibration images, and the training split for what trains it."""

    whole: Model
    batch: Calibration
    kept: Store
    train: Images | None


@dataclass(frozen=True)
class Solved:
    """A quantized network, and what the record says of the way there."""

    problem: Problem
    quantized: QuantizedModel
    cost: Cost
    widths: Widths
    cached: bool  # statistics were there
    weighed: dict[str, Any]
    correction: dict[str, Any]


def solve(config: Mapping[str, Any], part: Mapping[str, Any], given: Given, clock: Clock) -> Solved:
    """Quantize the network; `part` has the families of `config`, built.

    Raises
    ------
    SqError : what a user can fix, with the way out
    """
    whole, batch, kept = given.whole, given.batch, given.kept
    size, policy = config["batch_size"], config["ends"]
    model, fixed = ends.leave(whole, policy), ends.widths(whole, policy)
    with clock.phase("statistics"):
        how = {"batch_size": size, "positions": config["positions"], "seed": config["seed"]}
        collected, cached = cache.collect(model, batch, kept, **how)
        with gradients.explained(whole.net):
            h, weighed = importance.collect(part["grid"], model, batch, kept)
    with clock.phase("activation"):
        inputs = part["activation"](model.net, [layer.name for layer in model.layers], batch.x, fixed)
    beside = {"scratch": config["cache"], "scratch_gib": config["cache_gib"], "train": given.train}
    problem = Problem(model, batch, collected, part["grid"], inputs=inputs, fixed=fixed, importance=h, **beside)
    with clock.phase("sensitivity"), gradients.explained(whole.net):
        cost = part["sensitivity"](problem)
        cost.check()
    with clock.phase("allocation"):
        wide = {layer.name: inputs.bits.get(layer.name, resources.FLOAT) for layer in model.layers}
        rest = resources.beside(whole, model.layers)
        budget = Budget(config["bits"], fixed, wide, rest, ends.kept(whole, policy), resources.sizes(problem))
        widths = part["allocation"](cost, model.layers, budget)
    with clock.phase("activation"):
        problem = replace(problem, bits=widths.weights, activations=inputs.grids(widths.inputs))
    with clock.phase("quantize"), gradients.explained(whole.net):
        quantized = part["quantizer"](problem)
    with clock.phase("correct"):
        correct = None if quantized.trained else part["correction"]
        correction = correct(quantized.net, whole.net, batch) if correct else {"left_out": "the network was trained"}
    return Solved(problem, quantized, cost, widths, cached, weighed, correction)
