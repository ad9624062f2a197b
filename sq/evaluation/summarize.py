"""The parts of a record about the quantized network: layers, sizes, figures, costs and images."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

from sq.activation import insertion
from sq.config.constraints import FLOAT
from sq.evaluation.evaluate import Measured
from sq.learning import adaptive_step
from sq.network.resource_counts import (
    bops,
    code_bits,
    full_precision_rest,
    parameter_count,
    weight_bytes,
)
from sq.types.costs import Cost, Rows, Widths
from sq.types.images import Calibration, Dataset, without
from sq.types.problem import Layer, Model, Problem, QuantizedModel


def summarise(whole: Model, problem: Problem, quantized: QuantizedModel) -> dict[str, Any]:
    """Return the parts of a record that follow from the quantized network.

    Sizes are those of the network as it would be stored. Codes take as many whole bits as their
    levels need (one more than the grid's bits for 2^bits + 1 levels). Grid parameters, tables of
    levels and every other parameter take 32 bits, input adapters as well (`adapter_bytes`, if there
    are any). BOPs are multiply-accumulates times weight bits times activation bits, per image, of
    every layer that sq supports; layers kept in full precision count 32 times 32. Bits, in BOPs and
    in means, are those the grid was asked for.

    `solve_seconds` and `solve_cpu_seconds` are sums over layers, of wall-clock time and of CPU
    time. Layers that are solved side by side wait for one another, so the sum of wall-clock times
    may exceed that of the phase, `seconds.quantize`. CPU seconds are the solver's own, whatever
    else the machine does.

    Parameters
    ----------
    whole : the network with all layers; `problem.model` has those that were to be quantized
    """
    layers = [_describe(layer, problem, quantized) for layer in problem.model.layers]
    summary = {
        "results": _totals(layers, whole, problem, quantized),
        "layers": layers,
        "kept_layers": _kept_layers(whole, problem),
        "skipped_layers": whole.skipped,
        "statistics": problem.statistics.digest(),
        "checkpoint": whole.checkpoint,
    }
    if quantized.report:
        summary["learning"] = quantized.report
    return summary


def _totals(
    layers: list[dict[str, Any]], whole: Model, problem: Problem, quantized: QuantizedModel
) -> dict[str, Any]:
    """Return sums and means over the described `layers`, with what stays in full precision."""

    def total(key: str) -> float:
        return sum(layer[key] for layer in layers)

    rest = full_precision_rest(whole, problem.model.layers)
    weights = sum(layer["weights"] for layer in layers)
    weighted_bits = sum(layer["bits"] * layer["weights"] for layer in layers)
    totals: dict[str, Any] = {
        "relative_error": total("relative_error") / len(layers),
        "solve_seconds": total("solve_seconds"),
    }
    if all("solve_cpu_seconds" in layer for layer in layers):  # not if a GPU solved them
        totals["solve_cpu_seconds"] = total("solve_cpu_seconds")
    totals |= {
        "fit_seconds": total("fit_seconds"),
        "bits": weighted_bits / weights,
        "bytes": total("bytes") + rest["bytes"],
        "bytes_full": parameter_count(whole.net) * FLOAT // 8,
        "bops": total("bops") + rest["bops"],
        "bops_full": sum(bops(layer, FLOAT, FLOAT) for layer in whole.layers),
        "codes": quantized.digest(),
    }
    adapter_parameters = adaptive_step.adapter_parameters(
        insertion.attached(quantized.net).values()
    )
    adapter_bytes = adapter_parameters * FLOAT // 8
    if adapter_bytes:
        totals["adapter_bytes"] = adapter_bytes
        totals["bytes"] += adapter_bytes
    return totals


def _kept_layers(whole: Model, problem: Problem) -> list[str]:
    """Return the names of the layers kept in full precision."""
    quantized = {layer.name for layer in problem.model.layers}
    return [layer.name for layer in whole.layers if layer.name not in quantized]


def compare(measured: Measured, full: Measured) -> dict[str, Any]:
    """Return the figures of the quantized network, those of full precision, and both compared.

    Names of full-precision figures end in `_full`. `headline` names the main figure.
    """
    headline = next(iter(measured.figures))
    full_figures = {f"{name}_full": value for name, value in full.figures.items()}
    return {"headline": headline} | measured.figures | full_figures | measured.against(full)


def costs(cost: Cost, widths: Widths, fixed: Mapping[str, int]) -> dict[str, Any]:
    """Return the sensitivities of all bits, and the allocation's report.

    `predicted` is None if a layer has bits without a sensitivity, as `allocation=uniform` may
    choose them; layers with `fixed` bits, by name, need none.
    """
    free = {name: bits for name, bits in widths.weights.items() if name not in fixed}
    has_scores = all(bits in cost.weights.get(name, {}) for name, bits in free.items())
    predicted = cost.of(widths.weights, widths.inputs) if has_scores else None
    about = {
        "unit": cost.unit,
        "predicted": predicted,
        "unruly": cost.unruly(),
        "inputs": _json_rows(cost.inputs),
        "standard_errors": _json_rows(cost.errors),
    }
    about |= cost.about
    return {
        "sensitivity": _json_rows(cost.weights),
        "cost": about,
        "allocation": widths.report,
    }


def _json_rows(rows: Rows) -> dict[str, dict[str, float]]:
    """Return `rows` with bits as text, since keys of JSON objects are text."""
    json_rows: dict[str, dict[str, float]] = {}
    for name, row in rows.items():
        json_rows[name] = {str(bits): value for bits, value in row.items()}
    return json_rows


def trials(results: dict[str, Any], report: dict[str, Any]) -> dict[str, Any]:
    """Add the rank correlations of trials to `results`; return the rest of their report, if any."""
    if not report:
        return {}
    rest = {}
    for name, value in report.items():
        if name.startswith(("spearman", "kendall")):
            results[name] = value
        else:
            rest[name] = value
    return {"trials": rest}


def images(
    dataset: Dataset, batch: Calibration, left_out: list[str], correct: str | None
) -> dict[str, Any]:
    """Return the images used: the set, how many, hashes of their ids, and unreadable ones.

    Parameters
    ----------
    left_out : ids of evaluation images that could not be read
    correct : which evaluation images were classified correctly, see
        `sq.evaluation.paired_tests.packed`; None if the task has no such thing
    """
    evaluated = without(dataset.test.ids, left_out)
    calibration: dict[str, Any] = {
        "images": len(batch.ids),
        "ids": _hash(batch.ids),
        "left_out": list(batch.left_out),
    }
    if batch.made:
        calibration["made"] = batch.made
    evaluation: dict[str, Any] = {
        "images": len(evaluated),
        "ids": _hash(evaluated),
        "left_out": left_out,
    }
    if correct is not None:
        evaluation["right"] = correct
    return {
        "image_set": dataset.name,
        "calibration": calibration,
        "calibration_ids": sorted(batch.ids),
        "evaluation": evaluation,
    }


def _hash(ids: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(sorted(ids)).encode()).hexdigest()[:16]


def _describe(layer: Layer, problem: Problem, quantized: QuantizedModel) -> dict[str, Any]:
    """Return a layer's entry in the record."""
    solution = quantized.layers[layer.name]
    bits = problem.bits[layer.name]
    input_grid = problem.activations.get(layer.name)
    input_bits = FLOAT if input_grid is None else code_bits(input_grid)
    return {
        "name": layer.name,
        "kind": layer.kind,
        "groups": layer.groups,
        "outputs": layer.outputs,
        "inputs": layer.inputs,
        "bits": bits,
        "activation_bits": input_bits,
        "weights": layer.weights,
        "bytes": weight_bytes(layer, solution.grid),
        "macs": layer.macs,
        "bops": bops(layer, bits, input_bits),
        **solution.report,
    }
