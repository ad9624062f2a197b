"""One run, from config to figures; and `solve`, the way from statistics to correction that `sq.quantize` shares."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from sq.calibration.synthesis import contact_sheet
from sq.config import requirements
from sq.config.instantiate import build
from sq.config.schema import FAMILIES
from sq.errors import SqError
from sq.evaluation import expected_accuracy, fp_baseline, summarize
from sq.evaluation.evaluate import Evaluation, check_classes, check_disjoint, check_images
from sq.export.finished_run import FinishedRun
from sq.hessian import cache, weight_importance
from sq.network import (
    batchnorm_folding,
    checks,
    copies,
    coverage,
    first_last,
    gradients,
    plain_layers,
    resource_counts,
    tracing,
)
from sq.runtime import batching, cpu_threads, out_of_memory
from sq.runtime.phase_timer import Clock
from sq.storage.store import Store
from sq.trials.measurement import Trial
from sq.types.costs import Budget, Cost, Widths
from sq.types.images import Calibration, Images
from sq.types.problem import Model, Problem, QuantizedModel


@cpu_threads.phases()
def run(config: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    """Quantize the network that `config` names, measure it against full precision, return what was found.

    Raises
    ------
    SqError : what a user can fix, with the way out
    """
    out_of_memory.halved.clear()
    if missing := requirements.packages(config):
        raise SqError("; ".join(missing))
    part = {family: build(config[family], family) for family in FAMILIES if family != "tracker"}
    clock, size = Clock(device), config["batch_size"]
    with clock.phase("load"):
        model = part["model"]()
        checks.check(model.net)
        copies.channels_last(model.net.to(device))
        dataset = part["dataset"]().read_by(config["workers"])
        check_classes(model, dataset, device)
    with clock.phase("calibrate"):
        kept = Store(config["cache"], config["cache_gib"], config["model"])
        batch = part["calibration"](model, dataset, kept)
        check_disjoint(batch.ids, dataset.test.ids)
        check_images(model, batch, "calibration")
        batch = replace(batch, x=batching.to_device(batch.x, device))
        model = plain_layers.settle(model, batch.x)
        folded = batchnorm_folding.fold(model.net, batch.x[:1], batch.x) if config["fold"] else None
        model = replace(model, folded=folded.pairs if folded else ())
        whole = tracing.settle(model, batch.x)
        covered = coverage.of_model(whole, config["ends"], batch.x[:1])
    cpu_threads.set_for(cpu_threads.work(whole, batching.images_per_pass(model.input, size)))
    with clock.phase("full_precision"):
        evaluation = Evaluation(whole, part["metric"], dataset.test, size, device)
        full, known = fp_baseline.measure(config, whole, dataset, evaluation)
        expected = expected_accuracy.check(whole, dataset.name, full.figures)
    done = solve(config, part, Given(whole, batch, kept, dataset.train), clock)
    problem, quantized = done.problem, done.quantized
    with clock.phase("evaluate"):
        found = evaluation.measure(quantized.net)
    with clock.phase("trials"):
        front = done.widths.report.get("front", [])
        tried = part["trials"](
            Trial(problem, done.cost, part["quantizer"], dataset.test, size, kept, front)
        )
    with clock.phase("export"):
        finished = FinishedRun(config, whole, problem, quantized, found, evaluation.measure)
        exported = part["export"](finished)
    with clock.phase("latency"):
        timed = part["latency"](finished)
    made = summarize.summarise(whole, problem, quantized)
    made["results"] = summarize.compare(found, full) | made["results"]
    made |= summarize.costs(done.cost, done.widths, problem.fixed) | summarize.trials(
        made["results"], tried
    )
    made |= summarize.images(dataset, batch, evaluation.left_out, found.answers()) | done.weighed
    made |= {"coverage": covered.record()}
    made |= {"export": exported} if exported else {}
    made |= {"latency": timed} if timed else {}
    made |= {"sheet": contact_sheet.draw(model, batch)} if batch.made else {}
    spent = {
        "full_precision_cached": known,
        "statistics_cached": done.cached,
        "seconds": clock.seconds,
        "peak_bytes": clock.peak_bytes(),
        "halved": dict(out_of_memory.halved),
    }
    return (
        made
        | {
            "expected": expected,
            "folded": folded and folded.record(),
            "correction": done.correction,
        }
        | spent
    )


@dataclass(frozen=True)
class Given:
    """A network, settled (see `sq.network.tracing`), its calibration images, and the training split."""

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
    model, fixed = first_last.leave(whole, policy), first_last.widths(whole, policy)
    with clock.phase("statistics"):
        how = {"batch_size": size, "positions": config["positions"], "seed": config["seed"]}
        collected, cached = cache.collect(model, batch, kept, **how)
        with gradients.explained(whole.net):
            h, weighed = weight_importance.collect(part["grid"], model, batch, kept)
    with clock.phase("activation"):
        inputs = part["activation"](
            model.net, [layer.name for layer in model.layers], batch.x, fixed
        )
    beside = {"scratch": config["cache"], "scratch_gib": config["cache_gib"], "train": given.train}
    problem = Problem(
        model, batch, collected, part["grid"], inputs=inputs, fixed=fixed, importance=h, **beside
    )
    with clock.phase("sensitivity"), gradients.explained(whole.net):
        cost = part["sensitivity"](problem)
        cost.check()
    with clock.phase("allocation"):
        wide = {
            layer.name: inputs.bits.get(layer.name, resource_counts.FLOAT) for layer in model.layers
        }
        rest = resource_counts.beside(whole, model.layers)
        budget = Budget(
            config["bits"],
            fixed,
            wide,
            rest,
            first_last.kept(whole, policy),
            resource_counts.sizes(problem),
        )
        widths = part["allocation"](cost, model.layers, budget)
    with clock.phase("activation"):
        problem = replace(problem, bits=widths.weights, activations=inputs.grids(widths.inputs))
    with clock.phase("quantize"), gradients.explained(whole.net):
        quantized = part["quantizer"](problem)
    with clock.phase("correct"):
        correct = None if quantized.trained else part["correction"]
        correction = (
            correct(quantized.net, whole.net, batch)
            if correct
            else {"left_out": "the network was trained"}
        )
    return Solved(problem, quantized, cost, widths, cached, weighed, correction)
