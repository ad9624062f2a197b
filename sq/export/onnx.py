"""A network as a standard ONNX file: integer weights, quantized inputs, standard operators.

onnxruntime runs the file before the run ends. Its integers, outputs and figures are compared with
those of the run.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from sq.core import files, processor
from sq.core.progress import say
from sq.errors import SqError
from sq.export import onnx_export, onnx_session
from sq.export.finished_run import FinishedRun
from sq.export.onnx_export import OPSET, Parts
from sq.export.onnx_session import Session
from sq.records import record

SUFFIX = "onnx"


def write(run: FinishedRun, *, least_bits: Literal[4, 8], unsigned: bool) -> dict[str, Any]:
    """Write the network of a run as ONNX, run the file, and compare it with what was measured.

    Parameters
    ----------
    least_bits : least number of bits in which a weight code is stored
    unsigned : store weights that are signed 8-bit integers as unsigned ones with a zero point. The
        weights are the same. On x86 processors without VNNI, sums of their products with 8-bit
        inputs then do not saturate, but take longer

    Returns
    -------
    the file's name under `outputs`, its bytes and operator set, its figures and the agreement of
    its outputs; the processor and whether it has VNNI, the number of layers whose sums saturate
    without VNNI and, if they do here, the decibels of the outputs over the error of saturation

    Raises
    ------
    SqError : a package is missing; the format cannot hold something, which is named, with the
        format that can; the disk is full; the file computes something else: where that begins is
        named
    """
    onnx_export.check_packages()
    model = _model(run, least_bits, unsigned)
    file = run.file(SUFFIX)
    with run.written(file) as part:
        files.write_bytes(part, model.SerializeToString(), "outputs")
        verified = _verify(run, part, least_bits, unsigned)
        return {"format": "onnx", "file": run.name(file)} | verified


def _model(run: FinishedRun, least_bits: int, unsigned: bool) -> Any:
    """Return the ONNX model of a run's network."""
    import onnx

    problem, net = run.problem, run.quantized.net
    frame = onnx_export.frame(net, problem.model, problem.model.layers, problem.batch.x)
    model = frame.quantized(onnx_export.parts(run.quantized, problem), least_bits, unsigned)
    onnx.checker.check_model(model, full_check=True)
    for key, value in _metadata(run).items():
        model.metadata_props.append(onnx.StringStringEntryProto(key=key, value=value))
    return model


def _metadata(run: FinishedRun) -> dict[str, str]:
    """Return the metadata of the file: its run, and the images that it takes."""
    model = run.problem.model
    black, white = list(model.span[0]), list(model.span[1])
    if len(black) == 1:  # one value for all channels
        black, white = black * model.input[0], white * model.input[0]
    image = {"shape": list(model.input), "black": black, "white": white}
    return {
        "sq.key": record.key(run.config),
        "sq.name": run.config["name"],
        "sq.image": json.dumps(image),
    }


def _verify(run: FinishedRun, file: Path, least_bits: int, unsigned: bool) -> dict[str, Any]:
    """Return the figures of the file, after a check of its integers, weights and outputs."""
    import onnx

    model, problem = onnx.load(file), run.problem
    parts = onnx_export.parts(run.quantized, problem)
    x, names = problem.batch.x, [layer.name for layer in problem.model.layers]
    _check_codes(model, parts, least_bits, unsigned)
    _check_weights(model, run.quantized.net, names, x)
    try:
        largest, decibels = onnx_session.compare(run.quantized.net, model, names, x)
    except SqError as error:
        raise SqError(
            f"export=onnx: {error}, although weights are ours; use export=packed, and tell us"
        ) from error
    content = model.SerializeToString()
    processor_facts = _processor([] if unsigned else parts.saturating(), content, x)
    measured = run.measure(Session(content))
    # The drop against full precision is no agreement of these two.
    agreement = {
        name: value
        for name, value in measured.against(run.measured).items()
        if not name.startswith("drop")
    }
    return {
        "bytes": file.stat().st_size,
        "opset": OPSET,
        "figures": measured.figures,
        "outputs_apart": largest,
        "outputs_snr_db": decibels,
        "agreement": agreement,
    } | processor_facts


def _check_codes(model: Any, parts: Parts, least_bits: int, unsigned: bool) -> None:
    """Raise an `SqError` unless the integers in a model are those that were written."""
    from sq.export import onnx_qdq

    for name, (codes, grid) in parts.weights.items():
        in_file = onnx_qdq.codes_in(model.graph, name)
        expected = onnx_qdq.stored(codes, grid, tuple(in_file.shape), least_bits, unsigned)
        if not torch.equal(in_file, expected):
            raise SqError(
                f"export=onnx: the codes of {name} were not read back as they were written"
            )


def _check_weights(model: Any, net: nn.Module, names: list[str], x: Tensor) -> None:
    """Raise an `SqError` unless onnxruntime decodes the weights of `net`, bit by bit."""
    for name, in_file in onnx_session.weights_in(model, names, x).items():
        expected = onnx_export.weight(net, name).detach().cpu().contiguous()
        if not torch.equal(in_file, expected):
            raise SqError(
                f"export=onnx: the weight of {name} is not ours in the file; use export=packed, "
                "and tell us"
            )


def _processor(layers: list[str], model: bytes, x: Tensor) -> dict[str, Any]:
    """Return how figures depend on this processor: sums of `layers` saturate without VNNI."""
    facts = {
        "processor": processor.name(),
        "vnni": processor.vnni(),
        "saturating_layers": len(layers),
    }
    if not layers or processor.saturates() is False:
        return facts
    decibels = onnx_session.saturation_snr(model, x)
    say(
        f"export=onnx: {len(layers)} layers multiply inputs of 8 bits by signed weights of 8 bits, "
        f"and this CPU has no VNNI: onnxruntime's sums saturate on it (outputs are {decibels:.1f} "
        "dB above the error); export.unsigned=true stores the same weights so that they do not, "
        "bits=7 makes smaller ones"
    )
    return facts | {"saturated_snr_db": decibels}
