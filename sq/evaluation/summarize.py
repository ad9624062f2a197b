"""What a record says of a quantized network: layer by layer, and in all."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

from sq.activation import insertion
from sq.config.constraints import FLOAT
from sq.evaluation.evaluate import Measured
from sq.learning import adaptive_step
from sq.network.resource_counts import beside, bops, code_bits, numbers, weight_bytes
from sq.types.costs import Cost, Rows, Widths
from sq.types.images import Calibration, Dataset, without
from sq.types.problem import Layer, Model, Problem, QuantizedModel


def summarise(whole: Model, problem: Problem, quantized: QuantizedModel) -> dict[str, Any]:
    """Return the parts of a record that follow from the quantized network.

    Sizes are of the network as it would be stored: codes in as many whole bits as their levels need
    (one more than the grid's bits where it has 2^bits + 1), grid parameters, tables of levels
    included, and every other parameter in 32 bits, adapters of inputs as well (`adapter_bytes`,
    where there are any). BOPs are multiply-accumulates times weight bits times activation bits, per
    image, of every layer sq knows: those left in full precision count 32 times 32. Bits, there and
    in means, are those the grid was asked for.

    `solve_seconds` and `solve_cpu_seconds` are sums over layers, of what each took on the clock and
    of CPU time. Layers that are solved side by side wait for one another, so that their sum on the
    clock may exceed what the phase took, `seconds.quantize`; CPU seconds are the solver's own,
    whatever else the machine does.

    Parameters
    ----------
    whole : the network with all layers; `problem.model` has those that were to be quantized
    """
    layers = [_describe(layer, problem, quantized) for layer in problem.model.layers]
    done = {layer["name"] for layer in layers}
    left = [layer for layer in whole.layers if layer.name not in done]
    weights = sum(layer["weights"] for layer in layers)
    rest = beside(whole, problem.model.layers)
    measured = all("solve_cpu_seconds" in layer for layer in layers)  # not where a GPU did the work

    def total(what: str) -> float:
        return sum(layer[what] for layer in layers)

    results = {
        "relative_error": total("relative_error") / len(layers),
        "solve_seconds": total("solve_seconds"),
        **({"solve_cpu_seconds": total("solve_cpu_seconds")} if measured else {}),
        "fit_seconds": total("fit_seconds"),
        "bits": sum(layer["bits"] * layer["weights"] for layer in layers) / weights,
        "bytes": total("bytes") + rest["bytes"],
        "bytes_full": numbers(whole.net) * FLOAT // 8,
        "bops": total("bops") + rest["bops"],
        "bops_full": sum(bops(layer, FLOAT, FLOAT) for layer in whole.layers),
        "codes": quantized.digest(),
    }
    grids = insertion.attached(quantized.net).values()
    adapters = adaptive_step.adapter_parameters(grids) * FLOAT // 8
    if adapters:
        results |= {"adapter_bytes": adapters, "bytes": results["bytes"] + adapters}
    return {
        "results": results,
        "layers": layers,
        "kept_layers": [layer.name for layer in left],
        "skipped_layers": whole.skipped,
        "statistics": problem.statistics.digest(),
        "checkpoint": whole.checkpoint,
    } | ({"learning": quantized.report} if quantized.report else {})


def compare(found: Measured, full: Measured) -> dict[str, Any]:
    """Return the figures of the quantized network, those of full precision with `_full` after them, and both's."""
    headline = next(iter(found.figures))
    named = {f"{name}_full": value for name, value in full.figures.items()}
    return {"headline": headline} | found.figures | named | found.against(full)


def costs(cost: Cost, widths: Widths, fixed: Mapping[str, int]) -> dict[str, Any]:
    """Return what bits were said to cost, and what the allocation says of how it chose.

    `predicted` is None where a layer has bits without a price, as `allocation=uniform` may give it;
    `fixed` ones, by layer name, need none.
    """

    def plain(rows: Rows) -> dict[str, dict[str, float]]:
        return {
            name: {str(bits): value for bits, value in row.items()} for name, row in rows.items()
        }

    chosen = {name: bits for name, bits in widths.weights.items() if name not in fixed}
    priced = all(bits in cost.weights.get(name, {}) for name, bits in chosen.items())
    predicted = cost.of(widths.weights, widths.inputs) if priced else None
    about = {"unit": cost.unit, "predicted": predicted, "unruly": cost.unruly()}
    about |= {"inputs": plain(cost.inputs), "standard_errors": plain(cost.errors)} | cost.about
    return {"sensitivity": plain(cost.weights), "cost": about, "allocation": widths.report}


def trials(results: dict[str, Any], tried: dict[str, Any]) -> dict[str, Any]:
    """Put the figures of trials among the `results`; return what else the record says of them, if there were any."""
    ranks = {
        name: value for name, value in tried.items() if name.startswith(("spearman", "kendall"))
    }
    results |= ranks
    rest = {name: value for name, value in tried.items() if name not in ranks}
    return {"trials": rest} if tried else {}


def images(
    dataset: Dataset, batch: Calibration, left_out: list[str], right: str | None
) -> dict[str, Any]:
    """Return which images were used: the set, how many, hashes of their ids, and those that could not be read.

    `right` says which of the evaluation images were answered rightly, see
    `sq.evaluation.paired_tests.packed`.
    """
    evaluated = without(dataset.test.ids, left_out)
    return {
        "image_set": dataset.name,
        "calibration": {
            "images": len(batch.ids),
            "ids": _hash(batch.ids),
            "left_out": list(batch.left_out),
        }
        | ({"made": batch.made} if batch.made else {}),
        "calibration_ids": sorted(batch.ids),
        "evaluation": {"images": len(evaluated), "ids": _hash(evaluated), "left_out": left_out}
        | ({"right": right} if right is not None else {}),
    }


def _hash(ids: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(sorted(ids)).encode()).hexdigest()[:16]


def _describe(layer: Layer, problem: Problem, quantized: QuantizedModel) -> dict[str, Any]:
    done, bits = quantized.layers[layer.name], problem.bits[layer.name]
    inputs = problem.activations.get(layer.name)
    wide = FLOAT if inputs is None else code_bits(inputs)
    shape = {"groups": layer.groups, "outputs": layer.outputs, "inputs": layer.inputs}
    sizes = {
        "bits": bits,
        "activation_bits": wide,
        "weights": layer.weights,
        "bytes": weight_bytes(layer, done.grid),
    }
    costs = {"macs": layer.macs, "bops": bops(layer, bits, wide)}
    return {"name": layer.name, "kind": layer.kind, **shape, **sizes, **costs, **done.report}
