"""What a record says of a quantized network: layer by layer, and in all."""

from __future__ import annotations

import hashlib
from typing import Any

from sq.types import Layer, Model, Problem, QuantizedModel

FLOAT = 32  # bits of a number that stays unquantized, activations included


def summarise(model: Model, problem: Problem, quantized: QuantizedModel, bits: dict[str, int]) -> dict[str, Any]:
    """Return the parts of a record that follow from the quantized network.

    Sizes are of the network as it would be stored: codes at their bit-width, grid parameters and every
    other parameter in 32 bits. BOPs are multiply-accumulates times weight bits times activation bits, per image.
    """
    layers = [_describe(layer, problem, quantized, bits[layer.name]) for layer in model.layers]
    weights = sum(layer["weights"] for layer in layers)
    numbers = sum(t.numel() for t in model.net.state_dict().values() if t.is_floating_point())
    stored = sum(layer["bytes"] for layer in layers) + (numbers - weights) * FLOAT // 8

    def total(what: str) -> float:
        return sum(layer[what] for layer in layers)

    results = {
        "relative_error": total("relative_error") / len(layers),
        "solve_seconds": total("solve_seconds"),
        "fit_seconds": total("fit_seconds"),
        "bits": sum(layer["bits"] * layer["weights"] for layer in layers) / weights,
        "bytes": stored,
        "bytes_full": numbers * FLOAT // 8,
        "bops": total("bops"),
        "bops_full": sum(layer["macs"] for layer in layers) * FLOAT * FLOAT,
        "codes": quantized.digest(),
    }
    ids = problem.batch.ids
    calibration = {"images": len(ids), "ids": hashlib.sha256("\n".join(sorted(ids)).encode()).hexdigest()[:16]}
    return {
        "results": results,
        "layers": layers,
        "calibration": calibration,
        "statistics": problem.statistics.digest(),
        "checkpoint": model.checkpoint,
        "skipped_layers": model.skipped,
    }


def _describe(layer: Layer, problem: Problem, quantized: QuantizedModel, bits: int) -> dict[str, Any]:
    done = quantized.layers[layer.name]
    macs = layer.weights * problem.statistics.layers[layer.name].positions // problem.statistics.images
    shape = {"groups": layer.groups, "outputs": layer.outputs, "inputs": layer.inputs}
    size = -(-layer.weights * bits // 8) + done.grid.parameters() * FLOAT // 8
    sizes = {"bits": bits, "weights": layer.weights, "bytes": size, "macs": macs, "bops": macs * bits * FLOAT}
    return {"name": layer.name, "kind": layer.kind, **shape, **sizes, **done.report}
