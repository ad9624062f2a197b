"""One run, from config to figures: the data flow of sq on one page."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from sq import baseline, fold, gate, method, needs, oom, sheet, summary, threads, trace
from sq.build import build
from sq.clock import Clock
from sq.config import FAMILIES
from sq.errors import SqError
from sq.evaluation import Evaluation, check_classes, check_disjoint, check_images
from sq.finished import Finished
from sq.network import checks, copies, coverage, plain_layers
from sq.runtime import batching
from sq.store import Store
from sq.trial import Trial


@threads.phases()
def run(config: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    """Quantize the network that `config` names, measure it against full precision, return what was found.

    Raises
    ------
    SqError : what a user can fix, with the way out
    """
    oom.halved.clear()
    if missing := needs.packages(config):
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
        folded = fold.fold(model.net, batch.x[:1], batch.x) if config["fold"] else None
        model = replace(model, folded=folded.pairs if folded else ())
        whole = trace.settle(model, batch.x)
        covered = coverage.of_model(whole, config["ends"], batch.x[:1])
    threads.set_for(threads.work(whole, batching.images_per_pass(model.input, size)))
    with clock.phase("full_precision"):
        evaluation = Evaluation(whole, part["metric"], dataset.test, size, device)
        full, known = baseline.measure(config, whole, dataset, evaluation)
        expected = gate.check(whole, dataset.name, full.figures)
    done = method.solve(config, part, method.Given(whole, batch, kept, dataset.train), clock)
    problem, quantized = done.problem, done.quantized
    with clock.phase("evaluate"):
        found = evaluation.measure(quantized.net)
    with clock.phase("trials"):
        front = done.widths.report.get("front", [])
        tried = part["trials"](Trial(problem, done.cost, part["quantizer"], dataset.test, size, kept, front))
    with clock.phase("export"):
        finished = Finished(config, whole, problem, quantized, found, evaluation.measure)
        exported = part["export"](finished)
    with clock.phase("latency"):
        timed = part["latency"](finished)
    made = summary.summarise(whole, problem, quantized)
    made["results"] = summary.compare(found, full) | made["results"]
    made |= summary.costs(done.cost, done.widths, problem.fixed) | summary.trials(made["results"], tried)
    made |= summary.images(dataset, batch, evaluation.left_out, found.answers()) | done.weighed
    made |= {"coverage": covered.record()}
    made |= {"export": exported} if exported else {}
    made |= {"latency": timed} if timed else {}
    made |= {"sheet": sheet.draw(model, batch)} if batch.made else {}
    spent = {
        "full_precision_cached": known,
        "statistics_cached": done.cached,
        "seconds": clock.seconds,
        "peak_bytes": clock.peak_bytes(),
        "halved": dict(oom.halved),
    }
    return made | {"expected": expected, "folded": folded and folded.record(), "correction": done.correction} | spent
