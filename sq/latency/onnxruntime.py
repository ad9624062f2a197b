"""Latency in onnxruntime on the CPU: full precision, W8A8, W4A8 and the run's own network, side by side.

All of them are ONNX models that are made and timed in one process, in turns. Each layer alone is
timed as well, at each width that its weights and inputs can be stored in: a table that
`allocation=ilp` can bound latency by.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor

from sq.allocation.latency_table import lines
from sq.config.constraints import FLOAT, Count, Whole, Widths
from sq.core import cpu_cores, files, processor
from sq.errors import SqError
from sq.export import onnx_export, onnx_session
from sq.export.finished_run import FinishedRun
from sq.export.onnx_export import Parts
from sq.grid.uniform_grid import per_tensor
from sq.latency import layer_timing
from sq.network import geometry, hooks, residual_adds
from sq.network.forward import forward
from sq.network.resource_counts import code_bits
from sq.records import record
from sq.runtime import interleaved_timing
from sq.types.problem import Grid


def measure(  # noqa: PLR0913 (all but one are knobs, each a line of YAML)
    done: FinishedRun,
    *,
    images: Count,
    threads: Count,
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
    threads : of onnxruntime
    rounds, warmup : see `sq.runtime.interleaved_timing.race`
    layers : time each layer alone as well, and write the table beside the record
    bits, input_bits : that the table is to have, 1 to 8 of weights on the run's grid, and of
    inputs, or 32: full
        precision. Codes of weights are stored in 4 or 8 bits, of inputs in 8, after those of less
        were clipped in full precision; what is stored alike takes equally long

    Returns
    -------
    of each of `networks`, milliseconds of a pass, bytes of the model, and `faster`, how many times
    as fast as full precision it is, round by round: ``full``; ``w8a8`` and ``w4a8``, rounded to
    nearest, symmetric by channel, with inputs quantized where the run has layers and sums to
    quantize; the ``run``'s; and, if it has codes of up to 4 bits, ``run_in_8``: the same, with
    these stored in 8 bits; and of the processor, whether it has VNNI, without which sums of
    products in ``w8a8``, and in ``saturating_layers`` of the ``run``, saturate in the time that is
    measured

    Raises
    ------
    SqError : a package is missing, or threads are; what ONNX cannot hold, named; the run's network
    computes something
        else as ONNX: where that begins is named
    """
    onnx_export.check_packages()
    import onnxruntime

    if threads > cpu_cores.own():
        raise SqError(
            f"latency.threads={threads}: this process has {cpu_cores.own()} cores; set as many, or fewer"
        )
    race = partial(onnx_session.race, cores=threads, rounds=rounds, warmup=warmup)
    try:
        models = _models(done)
        x = done.problem.batch.x.cpu()
        x = x[torch.arange(images) % len(x)].contiguous()
        took = race({name: (model, x) for name, model in models.items()}, what="latency")
        found = (
            _layers(done, models["w8a8"], x, (bits, input_bits), partial(race, what="a layer"))
            if layers
            else []
        )
    except SqError as error:
        raise SqError(f"latency=onnxruntime: {error}; latency=none leaves this out") from error
    made = {
        "runtime": f"onnxruntime {onnxruntime.__version__}",
        "images": images,
        "threads": threads,
        "rounds": rounds,
    }
    made |= {
        "vnni": processor.vnni(),
        "saturating_layers": len(onnx_export.parts(done.quantized, done.problem).saturating()),
    }
    made["networks"] = {
        name: interleaved_timing.spread(ms)
        | {"faster": interleaved_timing.spread(took["full"] / ms), "bytes": models[name].ByteSize()}
        for name, ms in took.items()
    }
    if layers:
        file = record.path(done.config).with_suffix(".latency.csv")
        files.write_text(file, lines(found))
        made |= {"layers": found, "sums": _sums(done, found), "table": file.name}
    return made


def _models(done: FinishedRun) -> dict[str, Any]:
    """Return the networks that are compared, as ONNX models; the run's computes what the run measured."""
    problem, net, x = done.problem, done.quantized.net, done.problem.batch.x
    layers = problem.model.layers
    full = onnx_export.frame(done.whole.net, done.whole, layers, x)
    own, parts = (
        onnx_export.frame(net, problem.model, layers, x),
        onnx_export.parts(done.quantized, problem),
    )
    inputs, operands = _input_grids(done)
    made = {"full": full.plain()}
    for bits in (8, 4):
        weights = {
            layer.name: layer_timing.nearest_symmetric(geometry.weight(layer.module).cpu(), bits)
            for layer in layers
        }
        made[f"w{bits}a8"] = full.quantized(Parts(weights, inputs, operands))
    made["run"] = own.quantized(parts)
    onnx_session.compare(net, made["run"], [layer.name for layer in layers], x)
    if any(grid.levels <= 2**4 for _, grid in parts.weights.values()):
        made["run_in_8"] = own.quantized(parts, least=8)
    return made


def _input_grids(done: FinishedRun) -> tuple[dict[str, Grid], dict[str, Grid]]:
    """Return grids of 8 bits for what layers are fed, and for operands of sums where the run has grids for these.

    They span all that the first calibration images show: how long a pass takes does not depend on
    it.
    """
    ends: dict[str, tuple[float, float]] = {}

    def see(name: str, x: Tensor) -> Tensor:
        low, high = ends.get(name, (math.inf, -math.inf))
        ends[name] = (min(low, float(x.min())), max(high, float(x.max())))
        return x

    net, layers = done.whole.net, done.problem.model.layers
    fed = hooks.feeding(
        {layer.name: layer.module for layer in layers}, lambda name, module, x: see(name, x)
    )
    with torch.no_grad(), fed, residual_adds.Adds(see):
        forward(net, residual_adds.in_company(done.problem.batch.x[:2]))
    grids: dict[str, Grid] = {
        name: per_tensor(low, high, 8, False) for name, (low, high) in ends.items()
    }
    sums = residual_adds.attached(done.quantized.net)
    return {layer.name: grids[layer.name] for layer in layers}, {name: grids[name] for name in sums}


def _layers(
    done: FinishedRun, w8a8: Any, x: Tensor, widths: tuple[list[int], list[int]], race: Any
) -> list[dict[str, Any]]:
    """Return the milliseconds of each layer alone, as it stands in a network with quantized inputs."""
    from sq.latency import integer_regions

    beside = integer_regions.find(w8a8.graph, [layer.name for layer in done.problem.model.layers])
    alike = layer_timing.geometries(done.whole, x.to(done.problem.batch.x.device), beside)
    found: list[dict[str, Any]] = layer_timing.rows(done.problem, alike, *widths, race)
    return found


def _sums(done: FinishedRun, found: list[dict[str, Any]]) -> dict[str, float]:
    """Return the milliseconds of layers alone together: in full precision, and as in the run if the table has that."""
    taken = {
        (r["layer"], w, a): r["median"] for r in found for w in r["bits"] for a in r["input_bits"]
    }
    fed = {name: code_bits(grid) for name, grid in done.problem.activations.items()}
    names = [layer.name for layer in done.whole.layers]
    as_run = [(name, done.problem.bits.get(name, FLOAT), fed.get(name, FLOAT)) for name in names]
    made = {"full": sum(taken[name, FLOAT, FLOAT] for name in names)}
    return made | (
        {"run": sum(taken[key] for key in as_run)} if all(key in taken for key in as_run) else {}
    )
