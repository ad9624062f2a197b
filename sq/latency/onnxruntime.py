"""Latency in onnxruntime on the CPU: full precision, 8 bits, and the run's own network, side by side.

All of them are ONNX models that are made and timed in one process, in turns. Each layer alone is timed as well, at
each width that its weights and inputs can be stored in: a table that `allocation=ilp` can bound latency by.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from sq import activations, adds, onnx_layers, onnx_model, record, stopwatch
from sq.console import track
from sq.errors import SqError
from sq.finished import Finished
from sq.knobs import FLOAT, Count, Whole, Widths
from sq.latency_table import lines
from sq.onnx_layers import Geometry
from sq.onnx_model import Parts
from sq.sites import weight


def measure(  # noqa: PLR0913 (all but one are knobs, each a line of YAML)
    done: Finished,
    *,
    images: Count,
    cores: Count,
    rounds: Count,
    warmup: Whole,
    layers: bool,
    bits: Widths,
    input_bits: Widths,
) -> dict[str, Any]:
    """Time a run's network, and what it is compared with.

    Parameters
    ----------
    images : in one pass
    cores : threads of onnxruntime
    rounds, warmup : see `sq.stopwatch.race`
    layers : time each layer alone as well, and write the table beside the record
    bits, input_bits : that the table is to have, of weights and of inputs; 32 is full precision. Codes of up to 4 bits
        are stored in 4 for weights, of up to 8 in 8; inputs of up to 8 in 8, and of more not at all

    Returns
    -------
    milliseconds and bytes of ``full`` precision, of ``eight`` (rounded to nearest, with inputs of 8 bits if the run
    quantizes any), of the run's ``own`` network and, if it has codes of up to 4 bits, of ``wide``: the same, with these
    stored in 8 bits. `faster` is how many times as fast as full precision, round by round

    Raises
    ------
    SqError : a package is missing; what ONNX cannot hold, named
    """
    onnx_model.need()
    import onnxruntime

    x = _images(done, images)
    try:
        models = _models(done)
    except SqError as error:
        raise SqError(f"latency=onnxruntime: {error}, and latency=none") from error
    sessions = {name: onnx_model.open_session(model, cores) for name, model in models.items()}
    took = stopwatch.race({name: _pass(s, x) for name, s in sessions.items()}, rounds, warmup, "latency")
    networks = {
        name: stopwatch.spread(ms) | {"faster": stopwatch.spread(took["full"] / ms), "bytes": len(models[name])}
        for name, ms in took.items()
    }
    made = {"runtime": f"onnxruntime {onnxruntime.__version__}", "images": images, "cores": cores, "rounds": rounds}
    made |= {"networks": networks}
    if layers:
        kinds = _kinds(bits, input_bits)
        found = _layers(done, x, kinds, (cores, rounds, warmup))
        file = record.path(done.config).with_suffix(".latency.csv")
        record.write_text(file, lines(found, bits, input_bits))
        made |= {"layers": found, "table": file.name}
    return made


def _images(done: Finished, count: int) -> Tensor:
    x = done.problem.batch.x.cpu()
    return x[torch.arange(count) % len(x)].contiguous()


def _pass(session: Any, x: Tensor) -> Any:
    fed = {session.get_inputs()[0].name: x.numpy()}
    return lambda: session.run(None, fed)


def _models(done: Finished) -> dict[str, bytes]:
    """Return the networks that are compared, as ONNX models."""
    problem, net, x = done.problem, done.quantized.net, done.problem.batch.x
    layers = problem.model.layers
    full = onnx_model.frame(done.whole.net, done.whole, layers, x)
    own, parts = onnx_model.frame(net, problem.model, layers, x), onnx_model.parts(done.quantized, problem)
    made = {"full": full.plain(), "eight": full.quantized(_eight(done)), "own": own.quantized(parts)}
    if any(grid.levels <= 2**4 for _, grid in parts.weights.values()):
        made["wide"] = own.quantized(parts, least=8)
    return {name: model.SerializeToString() for name, model in made.items()}


def _eight(done: Finished) -> Parts:
    """Return the network with weights and inputs of 8 bits; inputs that the run leaves in full precision are so."""
    problem, net = done.problem, done.quantized.net
    weights = {
        layer.name: onnx_layers.eight(weight(layer).cpu().reshape(layer.groups, layer.outputs, layer.inputs))
        for layer in problem.model.layers
    }
    inputs, operands = (
        {name: problem.inputs.grid(name, 8) for name in own} for own in (activations.attached(net), adds.attached(net))
    )
    return Parts(weights, inputs, operands)


def _kinds(bits: list[int], input_bits: list[int]) -> list[onnx_layers.Widths]:
    """Return the widths that layers are to be timed at: as codes are stored."""
    inputs = {FLOAT if wide == FLOAT else 8 for wide in input_bits if wide <= 8 or wide == FLOAT}
    weights = {4 if narrow <= 4 else 8 for narrow in bits if narrow <= 8}
    return [(narrow, wide) for narrow in sorted(weights) for wide in sorted(inputs)] + [(FLOAT, FLOAT)]


def _layers(
    done: Finished, x: Tensor, kinds: list[onnx_layers.Widths], how: tuple[int, int, int]
) -> list[dict[str, Any]]:
    """Return the milliseconds of each layer at each of `kinds`, all its calls together."""
    sums: dict[tuple[str, onnx_layers.Widths], np.ndarray] = {}
    alike = onnx_layers.geometries(done.whole, x.to(done.problem.batch.x.device))
    for geometry in track(alike, "latency of layers"):
        for kind, ms in _alone(geometry, kinds, how).items():
            for layer in geometry.layers:
                sums[layer.name, kind] = sums.get((layer.name, kind), 0.0) + ms
    return [
        {"layer": layer.name, "weights": kind[0], "inputs": kind[1]} | stopwatch.spread(sums[layer.name, kind])
        for layer in done.whole.layers
        for kind in kinds
    ]


def _alone(
    geometry: Geometry, kinds: list[onnx_layers.Widths], how: tuple[int, int, int]
) -> dict[onnx_layers.Widths, np.ndarray]:
    cores, rounds, warmup = how
    sessions = {kind: onnx_model.open_session(geometry.model(kind).SerializeToString(), cores) for kind in kinds}
    passes = {str(kind): _pass(s, onnx_layers.fed(kind, geometry.shape)) for kind, s in sessions.items()}
    took = stopwatch.race(passes, rounds, warmup, "latency of a layer")
    return {kind: took[str(kind)] for kind in kinds}
