"""One run, from config to figures.

`quantize` is the part of it from statistics to correction, which `sq.quantize` uses as well.
"""

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
from sq.evaluation.evaluate import (
    Measured,
    NetworkEvaluator,
    check_classes,
    check_disjoint,
    check_images,
)
from sq.export.finished_run import FinishedRun
from sq.hessian import cache, weight_importance
from sq.network import (
    batchnorm_folding,
    checks,
    copies,
    first_last,
    gradients,
    plain_layers,
    resource_counts,
    tracing,
    weight_coverage,
)
from sq.runtime import batching, cpu_threads, out_of_memory
from sq.runtime.phase_timer import Clock
from sq.storage.store import Store
from sq.trials.measurement import Trial
from sq.types.costs import Budget, Cost, Widths
from sq.types.images import Calibration, Dataset, Images
from sq.types.problem import Model, Problem, QuantizedModel

Config = Mapping[str, Any]
Parts = Mapping[str, Any]  # the functions that a config names, by family


@cpu_threads.phases()
def run(config: Config, device: torch.device) -> dict[str, Any]:
    """Quantize the network of `config` and measure it against full precision; return the record.

    Raises
    ------
    SqError : what a user can fix, with the way out
    """
    with out_of_memory.remembering() as halved:
        record = _run(config, device)
    record["halved"] = halved
    return record


def _run(config: Config, device: torch.device) -> dict[str, Any]:
    """Return the record of a run, but for what ran out of memory."""
    missing = requirements.packages(config)
    if missing:
        raise SqError("; ".join(missing))
    parts = {family: build(config[family], family) for family in FAMILIES if family != "tracker"}
    clock = Clock(device)
    with clock.phase("load"):
        model, dataset = _load(config, parts, device)
    with clock.phase("calibrate"):
        prepared = _prepare(config, parts, model, dataset, device)
    set_threads(config, prepared.model)
    with clock.phase("full_precision"):
        baseline = _measure_full_precision(config, parts, prepared, dataset, device)
    solution = quantize(config, parts, prepared.input, clock)
    with clock.phase("evaluate"):
        measured = baseline.evaluator.measure(solution.quantized.net)
    with clock.phase("trials"):
        trials = _run_trials(config, parts, dataset, prepared.input.store, solution)
    finished = FinishedRun(
        config,
        prepared.model,
        solution.problem,
        solution.quantized,
        measured,
        baseline.evaluator.measure,
    )
    with clock.phase("export"):
        exported = parts["export"](finished)
    with clock.phase("latency"):
        latency = parts["latency"](finished)

    # Later parts come later in the record, as in all records so far.
    record = summarize.summarise(prepared.model, solution.problem, solution.quantized)
    record["results"] = summarize.compare(measured, baseline.measured) | record["results"]
    record |= summarize.costs(solution.cost, solution.widths, solution.problem.fixed)
    record |= summarize.trials(record["results"], trials)
    batch, left_out = prepared.input.batch, baseline.evaluator.left_out
    record |= summarize.images(dataset, batch, left_out, measured.answers())
    record |= solution.importance
    record["coverage"] = prepared.coverage.record()
    if exported:
        record["export"] = exported
    if latency:
        record["latency"] = latency
    if batch.made:
        record["sheet"] = contact_sheet.draw(prepared.untraced, batch)
    record["expected"] = baseline.expected
    record["folded"] = prepared.folded and prepared.folded.record()
    record["correction"] = solution.correction
    record["full_precision_cached"] = baseline.cached
    record["statistics_cached"] = solution.statistics_cached
    record["seconds"] = clock.seconds
    record["peak_bytes"] = clock.peak_bytes()
    return record


@dataclass(frozen=True)
class QuantizationInput:
    """What `quantize` takes: a network, its calibration images, a store and the training split."""

    model: Model  # traced, see `sq.network.tracing`
    batch: Calibration
    store: Store
    train: Images | None


@dataclass(frozen=True)
class Prepared:
    """A network that is ready to be quantized, and what the record says of the preparation."""

    input: QuantizationInput
    untraced: Model
    folded: batchnorm_folding.Folded | None
    coverage: weight_coverage.Coverage

    @property
    def model(self) -> Model:
        """Return the network to quantize."""
        return self.input.model


@dataclass(frozen=True)
class Baseline:
    """The figures of full precision."""

    evaluator: NetworkEvaluator  # measures the quantized network on the same images
    measured: Measured
    cached: bool  # an earlier run of this process had measured them
    expected: dict[str, float] | None  # the figures they were checked against, if there are any


@dataclass(frozen=True)
class Solution:
    """A quantized network, and what the record says of how it was quantized."""

    problem: Problem
    quantized: QuantizedModel
    cost: Cost
    widths: Widths
    statistics_cached: bool
    importance: dict[str, Any]
    correction: dict[str, Any]


def _load(config: Config, parts: Parts, device: torch.device) -> tuple[Model, Dataset]:
    model = parts["model"]()
    checks.check(model.net)
    copies.channels_last(model.net.to(device))
    dataset = parts["dataset"]().read_by(config["workers"])
    check_classes(model, dataset, device)
    return model, dataset


def _prepare(
    config: Config, parts: Parts, model: Model, dataset: Dataset, device: torch.device
) -> Prepared:
    """Draw the calibration images, and prepare the network with them."""
    store = Store(config["cache"], config["cache_gib"], config["model"])
    batch = parts["calibration"](model, dataset, store)
    check_disjoint(batch.ids, dataset.test.ids)
    check_images(model, batch, "calibration")
    batch = replace(batch, x=batching.to_device(batch.x, device))
    return prepare_network(config, model, batch, store, dataset.train)


def prepare_network(
    config: Config, model: Model, batch: Calibration, store: Store, train: Images | None
) -> Prepared:
    """Rewrite, fold and trace the network with its calibration images, and report its coverage."""
    model = plain_layers.rewrite_model(model, batch.x)
    folded = None
    if config["fold"]:
        folded = batchnorm_folding.fold(model.net, batch.x[:1], batch.x)
    model = replace(model, folded=folded.pairs if folded else ())
    traced = tracing.trace(model, batch.x)
    covered = weight_coverage.of_model(traced, config["ends"], batch.x[:1])
    return Prepared(QuantizationInput(traced, batch, store, train), model, folded, covered)


def set_threads(config: Config, model: Model) -> None:
    """Use as many threads as a pass of the network gains by."""
    images = batching.images_per_pass(model.input, config["batch_size"])
    cpu_threads.set_for(cpu_threads.work(model, images))


def _measure_full_precision(
    config: Config, parts: Parts, prepared: Prepared, dataset: Dataset, device: torch.device
) -> Baseline:
    evaluator = NetworkEvaluator(
        prepared.model, parts["metric"], dataset.test, config["batch_size"], device
    )
    measured, cached = fp_baseline.process_cache.measure(config, prepared.model, dataset, evaluator)
    expected = expected_accuracy.check(prepared.model, dataset.name, measured.figures)
    return Baseline(evaluator, measured, cached, expected)


def _run_trials(
    config: Config, parts: Parts, dataset: Dataset, store: Store, solution: Solution
) -> Any:
    """Measure further bit assignments, if the config asks for that."""
    front = solution.widths.report.get("front", [])
    trial = Trial(
        solution.problem,
        solution.cost,
        parts["quantizer"],
        dataset.test,
        config["batch_size"],
        store,
        front,
    )
    return parts["trials"](trial)


def quantize(config: Config, parts: Parts, given: QuantizationInput, clock: Clock) -> Solution:
    """Quantize a network: statistics, sensitivity, bit-widths, quantizer, correction.

    Parameters
    ----------
    parts : the families of `config`, built

    Raises
    ------
    SqError : what a user can fix, with the way out
    """
    whole, batch, store = given.model, given.batch, given.store
    policy = config["ends"]
    model = first_last.without_kept_layers(whole, policy)
    fixed = first_last.fixed_bits(whole, policy)
    with clock.phase("statistics"):
        statistics, cached = cache.collect(
            model,
            batch,
            store,
            batch_size=config["batch_size"],
            positions=config["positions"],
            seed=config["seed"],
        )
        with gradients.explained(whole.net):
            h, importance = weight_importance.collect(parts["grid"], model, batch, store)
    with clock.phase("activation"):
        names = [layer.name for layer in model.layers]
        inputs = parts["activation"](model.net, names, batch.x, fixed)
    problem = Problem(
        model,
        batch,
        statistics,
        parts["grid"],
        inputs=inputs,
        fixed=fixed,
        importance=h,
        scratch=config["cache"],
        scratch_gib=config["cache_gib"],
        train=given.train,
    )
    with clock.phase("sensitivity"), gradients.explained(whole.net):
        cost = parts["sensitivity"](problem)
        cost.check()
    with clock.phase("allocation"):
        budget = _budget(config, whole, problem)
        widths = parts["allocation"](cost, model.layers, budget)
    with clock.phase("activation"):
        grids = inputs.grids(widths.inputs)
        problem = replace(problem, bits=widths.weights, activations=grids)
    with clock.phase("quantize"), gradients.explained(whole.net):
        quantized = parts["quantizer"](problem)
    with clock.phase("correct"):
        correction = {"left_out": "the network was trained"}
        if not quantized.trained:
            correction = parts["correction"](quantized.net, whole.net, batch)
    return Solution(problem, quantized, cost, widths, cached, importance, correction)


def _budget(config: Config, whole: Model, problem: Problem) -> Budget:
    """Return what an allocation may spend on the layers of `problem`, of the network `whole`."""
    policy, layers = config["ends"], problem.model.layers
    input_bits = {}
    for layer in layers:
        input_bits[layer.name] = problem.inputs.bits.get(layer.name, resource_counts.FLOAT)
    return Budget(
        config["bits"],
        problem.fixed,
        input_bits,
        resource_counts.full_precision_rest(whole, layers),
        first_last.kept_layers(whole, policy),
        resource_counts.size_function(problem),
    )
