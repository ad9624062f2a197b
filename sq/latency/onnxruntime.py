"""Latency in onnxruntime on the CPU: full precision, W8A8, W4A8 and the run's network.

All are ONNX models that are built and timed in one process, in turns. Each single layer can be
timed as well, at each width that its weights and inputs can be stored in: `allocation=ilp` can
bound latency by that table.
"""

from __future__ import annotations

import itertools
import math
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sq.allocation.latency_table import to_csv
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


def measure(  # noqa: PLR0913 (all but one are settings, each a line of YAML)
    run: FinishedRun,
    *,
    images: Count,
    threads: Count,
    rounds: Count,
    warmup: Whole,
    layers: bool,
    bits: Widths,
    input_bits: Widths,
) -> dict[str, Any]:
    """Time a run's network, and the networks it is compared with.

    Parameters
    ----------
    images : in one pass
    threads : of onnxruntime
    rounds, warmup : see `sq.runtime.interleaved_timing.race`
    layers : time each single layer as well, and write the table beside the record
    bits, input_bits : widths that the table is to have: weights of 1 to 8 bits on the run's grid,
        and inputs of 1 to 8 bits, or 32: full precision. Codes of weights are stored in 4 or 8
        bits; those of inputs in 8, and inputs of fewer bits are clipped first. Widths that are
        stored alike take equally long

    Returns
    -------
    runtime, images, threads and rounds; whether the processor has VNNI, without which the sums of
    products of ``w8a8`` saturate in the measured time, and in how many layers of the ``run`` they
    do (`saturating_layers`); and for each of the `networks` the milliseconds of a pass, the bytes
    of the model, and `faster`: how many times as fast as full precision it is, round by round.

    The networks: ``full``; ``w8a8`` and ``w4a8``, rounded to nearest, symmetric by channel, with
    inputs quantized where the run has layers and sums to quantize; the ``run``'s; and, if it has
    codes of up to 4 bits, ``run_in_8``: the same with these stored in 8 bits

    Raises
    ------
    SqError : a package is missing, or the process has fewer cores; ONNX cannot hold a part, which
        is named; the run's network computes something else as ONNX: where that begins is named
    """
    onnx_export.check_packages()
    import onnxruntime

    cores = cpu_cores.own()
    if threads > cores:
        raise SqError(
            f"latency.threads={threads}: this process has {cores} cores; set as many, or fewer"
        )
    race = partial(onnx_session.race, cores=threads, rounds=rounds, warmup=warmup)
    table = []
    try:
        models = _models(run)
        x = run.problem.batch.x.cpu()
        x = x[torch.arange(images) % len(x)].contiguous()  # repeated if there are fewer
        times = race({name: (model, x) for name, model in models.items()}, what="latency")
        if layers:
            race_layer = partial(race, what="a layer")
            table = _layers(run, models["w8a8"], x, (bits, input_bits), race_layer)
    except SqError as error:
        raise SqError(f"latency=onnxruntime: {error}; latency=none leaves this out") from error
    result: dict[str, Any] = {
        "runtime": f"onnxruntime {onnxruntime.__version__}",
        "images": images,
        "threads": threads,
        "rounds": rounds,
        "vnni": processor.vnni(),
        "saturating_layers": len(onnx_export.parts(run.quantized, run.problem).saturating()),
        "networks": _figures(models, times),
    }
    if layers:
        file = record.path(run.config).with_suffix(".latency.csv")
        files.write_text(file, to_csv(table))
        result |= {"layers": table, "sums": _sums(run, table), "table": file.name}
    return result


def _figures(models: dict[str, Any], times: dict[str, np.ndarray]) -> dict[str, dict[str, Any]]:
    """Return milliseconds, ratio to full precision and bytes of each network."""
    networks: dict[str, dict[str, Any]] = {}
    for name, ms in times.items():
        networks[name] = {
            **interleaved_timing.spread(ms),
            # Round by round: what slows the machine down for a while slows both.
            "faster": interleaved_timing.spread(times["full"] / ms),
            "bytes": models[name].ByteSize(),
        }
    return networks


def _models(run: FinishedRun) -> dict[str, Any]:
    """Return the networks to time as ONNX models; the run's is checked to compute the same."""
    problem, net, x = run.problem, run.quantized.net, run.problem.batch.x
    layers = problem.model.layers
    full = onnx_export.frame(run.whole.net, run.whole, layers, x)
    quantized = onnx_export.frame(net, problem.model, layers, x)
    parts = onnx_export.parts(run.quantized, problem)
    inputs, operands = _input_grids(run)
    models = {"full": full.plain()}
    for bits in (8, 4):
        weights = {}
        for layer in layers:
            weight = geometry.weight(layer.module).cpu()
            weights[layer.name] = layer_timing.nearest_symmetric(weight, bits)
        models[f"w{bits}a8"] = full.quantized(Parts(weights, inputs, operands))
    models["run"] = quantized.quantized(parts)
    # What is timed has to be the network that was measured.
    onnx_session.compare(net, models["run"], [layer.name for layer in layers], x)
    # Codes of up to 4 bits are stored in 4: the same in 8 shows what that costs.
    if any(grid.levels <= 2**4 for _, grid in parts.weights.values()):
        models["run_in_8"] = quantized.quantized(parts, least=8)
    return models


def _input_grids(run: FinishedRun) -> tuple[dict[str, Grid], dict[str, Grid]]:
    """Return grids of 8 bits for the inputs of layers, and for the operands of sums.

    Only sums that the run quantizes have grids. They span the values of the first calibration
    images: how long a pass takes does not depend on them.
    """
    ranges: dict[str, tuple[float, float]] = {}

    def widen(name: str, x: Tensor) -> Tensor:
        low, high = ranges.get(name, (math.inf, -math.inf))
        ranges[name] = (min(low, float(x.min())), max(high, float(x.max())))
        return x

    layers = run.problem.model.layers
    modules = {layer.name: layer.module for layer in layers}
    watching = hooks.feeding(modules, lambda name, module, x: widen(name, x))
    with torch.no_grad(), watching, residual_adds.Adds(widen):
        forward(run.whole.net, residual_adds.two_images(run.problem.batch.x[:2]))
    grids: dict[str, Grid] = {}
    for name, (low, high) in ranges.items():
        grids[name] = per_tensor(low, high, 8, False)
    sums = residual_adds.attached(run.quantized.net)
    return {name: grids[name] for name in modules}, {name: grids[name] for name in sums}


def _layers(
    run: FinishedRun, w8a8: Any, x: Tensor, widths: tuple[list[int], list[int]], race: Any
) -> list[dict[str, Any]]:
    """Return the latency of each single layer, with codes in and out as in network `w8a8`."""
    from sq.latency import integer_regions

    names = [layer.name for layer in run.problem.model.layers]
    neighbours = integer_regions.find(w8a8.graph, names)
    on_device = x.to(run.problem.batch.x.device)
    alike = layer_timing.geometries(run.whole, on_device, neighbours)
    table: list[dict[str, Any]] = layer_timing.rows(run.problem, alike, *widths, race)
    return table


def _sums(run: FinishedRun, table: list[dict[str, Any]]) -> dict[str, float]:
    """Return the sum over layers of their milliseconds: in full precision, and as in the run.

    The latter only if the table has the run's widths.
    """
    ms: dict[tuple[str, int, int], float] = {}  # by layer, bits of weights and bits of inputs
    for row in table:
        for bits, input_bits in itertools.product(row["bits"], row["input_bits"]):
            ms[row["layer"], bits, input_bits] = row["median"]
    full_keys, run_keys = [], []
    for layer in run.whole.layers:
        name = layer.name
        bits = run.problem.bits.get(name, FLOAT)
        input_grid = run.problem.activations.get(name)
        input_bits = FLOAT if input_grid is None else code_bits(input_grid)
        full_keys.append((name, FLOAT, FLOAT))
        run_keys.append((name, bits, input_bits))
    sums = {"full": sum(ms[key] for key in full_keys)}
    if all(key in ms for key in run_keys):
        sums["run"] = sum(ms[key] for key in run_keys)
    return sums
