"""A network as a standard ONNX file: integers for weights, quantized inputs, in operators that every runtime has.

The file is run by onnxruntime before the run ends: its integers, its outputs and its figures stand
beside ours.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from sq.core import files, processor
from sq.core.progress import say
from sq.errors import SqError
from sq.export import onnx_export, onnx_session
from sq.export.finished_run import Finished
from sq.export.onnx_export import OPSET
from sq.export.onnx_session import Session
from sq.records import record

SUFFIX = "onnx"


def write(done: Finished, *, least_bits: Literal[4, 8], unsigned: bool) -> dict[str, Any]:
    """Write the network of a run as ONNX, run the file, and say how far it is from what was measured.

    Parameters
    ----------
    least_bits : that a code of a weight is stored in
    unsigned : weights that are signed integers of 8 bits are stored unsigned, with a zero point:
    they are
        the same, and sums of their products with inputs of 8 bits do not saturate on x86 processors
        without VNNI, where they take longer for it

    Returns
    -------
    the file's name under `outputs`, its bytes and operator set, the figures it reaches and how its
    outputs agree; the processor that this was on, whether it has VNNI, the number of layers whose
    sums saturate without it, and if they do here, by how many decibels outputs are above what that
    takes off

    Raises
    ------
    SqError : a package is missing; what the format cannot hold, named, with the one that can; the
        disk is full; the file computes something else: where that begins is named
    """
    onnx_export.need()
    model = _model(done, least_bits, unsigned)
    file = done.file(SUFFIX)
    with done.written(file) as part:
        files.write_bytes(part, model.SerializeToString(), "outputs")
        return {"format": "onnx", "file": done.name(file)} | _verify(
            done, part, least_bits, unsigned
        )


def _model(done: Finished, least: int, unsigned: bool) -> Any:
    """Return the ONNX model of a run's network."""
    import onnx

    problem, net = done.problem, done.quantized.net
    own = onnx_export.frame(net, problem.model, problem.model.layers, problem.batch.x)
    model = own.quantized(onnx_export.parts(done.quantized, problem), least, unsigned)
    onnx.checker.check_model(model, full_check=True)
    model.metadata_props.extend(_told(done, onnx.StringStringEntryProto))
    return model


def _told(done: Finished, entry: Any) -> list[Any]:
    """Return what the file says of itself: the run, and what images it takes, for whoever has nothing but the file."""
    model = done.problem.model
    black, white = ([*end] if len(end) > 1 else [*end] * model.input[0] for end in model.span)
    image = {"shape": list(model.input), "black": black, "white": white}
    words = {
        "sq.key": record.key(done.config),
        "sq.name": done.config["name"],
        "sq.image": json.dumps(image),
    }
    return [entry(key=key, value=value) for key, value in words.items()]


def _verify(done: Finished, file: Path, least: int, unsigned: bool) -> dict[str, Any]:
    """Return the figures of the file, whose integers must be those of the run and whose outputs must be close."""
    import onnx

    from sq.export import onnx_qdq

    stored, problem = onnx.load(file), done.problem
    parts = onnx_export.parts(done.quantized, problem)
    for name, (codes, grid) in parts.weights.items():
        found = onnx_qdq.codes_in(stored.graph, name)
        if not torch.equal(
            found, onnx_qdq.stored(codes, grid, tuple(found.shape), least, unsigned)
        ):
            raise SqError(
                f"export=onnx: the codes of {name} were not read back as they were written"
            )
    x, names = problem.batch.x, [layer.name for layer in problem.model.layers]
    for name, own in onnx_session.weights_in(stored, names, x).items():
        if not torch.equal(
            own, onnx_export.weight(done.quantized.net, name).detach().cpu().contiguous()
        ):
            raise SqError(
                f"export=onnx: the weight of {name} is not ours in the file; use export=packed, and tell us"
            )
    try:
        most, decibels = onnx_session.compare(done.quantized.net, stored, names, x)
    except SqError as error:
        raise SqError(
            f"export=onnx: {error}, although weights are ours; use export=packed, and tell us"
        ) from error
    content = stored.SerializeToString()
    told = _processor([] if unsigned else parts.saturating(), content, x)
    again = done.measure(Session(content))
    agree = {
        name: value
        for name, value in again.against(done.found).items()
        if not name.startswith("drop")
    }
    apart = {"outputs_apart": most, "outputs_snr_db": decibels}
    sizes = {"bytes": file.stat().st_size, "opset": OPSET}
    return sizes | {"figures": again.figures} | apart | {"agreement": agree} | told


def _processor(layers: list[str], model: bytes, x: Tensor) -> dict[str, Any]:
    """Return what of figures hangs on this processor: `layers` are those whose sums saturate without VNNI."""
    told = {
        "processor": processor.name(),
        "vnni": processor.vnni(),
        "saturating_layers": len(layers),
    }
    if not layers or processor.saturates() is False:
        return told
    decibels = onnx_session.lost(model, x)
    say(
        f"export=onnx: {len(layers)} layers multiply inputs of 8 bits by signed weights of 8 bits, and this CPU has no "
        f"VNNI: onnxruntime's sums saturate on it (outputs are {decibels:.1f} dB above the error); "
        "export.unsigned=true stores the same weights so that they do not, bits=7 makes smaller ones"
    )
    return told | {"saturated_snr_db": decibels}
