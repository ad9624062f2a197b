"""A network as a standard ONNX file: integers for weights, quantized inputs, in operators that every runtime has.

The file is run by onnxruntime before the run ends: its integers, its outputs and its figures stand beside ours.
"""

from __future__ import annotations

import copy
import io
import json
import warnings
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sq import activations, adds, needs, record
from sq.errors import SqError, one_line
from sq.finished import Finished

SUFFIX = "onnx"
OPSET = 21  # the first with integers of 4 bits
LEAST_SNR = 20.0  # decibels of our outputs over their distance from the file's: roundings of inputs may fall otherwise
SMALL = 64  # bytes of constants that are computed beforehand: shapes, never codes
TIMED = 32  # calibration images that outputs are compared on at a time


def write(done: Finished) -> dict[str, Any]:
    """Write the network of a run as ONNX, run the file, and say how far it is from what was measured.

    Returns
    -------
    the file's name under `outputs`, its bytes and operator set, the figures it reaches and how its outputs agree

    Raises
    ------
    SqError : a package is missing; what the format cannot hold, named, with the one that can; the
        disk is full; the file computes something else: the node where that begins is named
    """
    _need()
    model = _model(done)
    file = done.file(SUFFIX)
    record.write_bytes(file, model.SerializeToString())
    try:
        return {"format": "onnx", "file": str(file.relative_to(done.config["outputs"]))} | _verify(done, file, model)
    except BaseException:
        file.unlink(missing_ok=True)  # a file that does not compute what the record says must not be there
        raise


def _need() -> None:
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise SqError(f"export=onnx: {error}: {needs.EXPORT}") from error


def _model(done: Finished) -> Any:
    """Return the ONNX model of a run's network."""
    import onnx

    from sq.export import graph as own

    net = copy.deepcopy(done.quantized.net).cpu()
    if sums := adds.attached(net):
        raise SqError(
            f"{len(sums)} operands of additions have grids, which export=onnx cannot hold: use export=packed, or "
            "activation.observe.adds=false"
        )
    fed = activations.attached(net)
    activations.detach(net)
    model = _plain(net, done.problem.batch.x[:2].cpu())
    for layer in done.problem.model.layers:
        made, shape = done.quantized.layers[layer.name], tuple(_weight(net, layer.name).shape)
        own.put_weight(model.graph, layer.name, made.codes, made.grid, shape)
    for name, grid in fed.items():
        own.put_input(model.graph, name, grid)
    model = _tidy(model)
    if left := own.as_numbers(model.graph, done.quantized.layers):
        raise SqError(f"export=onnx left the weight of {left[0]} as numbers: use export=packed")
    model.metadata_props.extend(_told(done, onnx.StringStringEntryProto))
    return model


def _told(done: Finished, entry: Any) -> list[Any]:
    """Return what the file says of itself: the run, and what images it takes, for whoever has nothing but the file."""
    model = done.problem.model
    black, white = ([*end] if len(end) > 1 else [*end] * model.input[0] for end in model.span)
    image = {"shape": list(model.input), "black": black, "white": white}
    words = {"sq.key": record.key(done.config), "sq.name": done.config["name"], "sq.image": json.dumps(image)}
    return [entry(key=key, value=value) for key, value in words.items()]


def _plain(net: nn.Module, x: Tensor) -> Any:
    """Return the ONNX model of a network as it is, for any number of images."""
    batch = ({0: torch.export.Dim.DYNAMIC},)
    how = {"dynamo": True, "opset_version": OPSET, "optimize": False, "verbose": False}
    names = {"input_names": ["images"], "output_names": ["outputs"]}
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()), torch.no_grad():
            warnings.simplefilter("ignore")
            made = torch.onnx.export(net, (x,), dynamic_shapes=batch, **how, **names)  # type: ignore[arg-type]
    except Exception as error:  # whatever its exporter raises
        raise SqError(
            f"PyTorch cannot write {type(net).__name__} as ONNX ({one_line(error)[:200]}): use export=packed"
        ) from error
    assert made is not None
    return made.model_proto


def _tidy(model: Any) -> Any:
    """Return the model with shapes computed beforehand, and checked."""
    import onnx
    from onnxscript import optimizer

    made = optimizer.optimize(model, input_size_limit=SMALL, output_size_limit=SMALL)
    onnx.checker.check_model(made, full_check=True)
    return made


class Session(nn.Module):
    """A file run by onnxruntime on the CPU, in the place of a network."""

    def __init__(self, model: bytes, outputs: list[str] | None = None):
        super().__init__()
        import onnxruntime as ort

        own = ort.SessionOptions()
        own.intra_op_num_threads = torch.get_num_threads()
        own.log_severity_level = 3
        self.outputs = outputs
        self.session = ort.InferenceSession(model, own, providers=["CPUExecutionProvider"])
        self.name = self.session.get_inputs()[0].name

    def forward(self, x: Tensor) -> Tensor:
        """Return the first output for images `x` (B, C, H, W)."""
        found = self.session.run(self.outputs, {self.name: x.cpu().contiguous().numpy()})
        return torch.from_numpy(found[0]).to(x.device)


def _verify(done: Finished, file: Path, model: Any) -> dict[str, Any]:
    """Return the figures of the file, whose integers must be those of the run and whose outputs must be close."""
    import onnx

    from sq.export import graph as own

    stored = onnx.load(file)
    for layer in done.problem.model.layers:
        made = done.quantized.layers[layer.name]
        found = own.codes_in(stored.graph, layer.name)
        if not torch.equal(found, own.stored(made.codes.cpu(), made.grid, tuple(found.shape))):
            raise SqError(f"export=onnx: the codes of {layer.name} were not read back as they were written")
    session, x = Session(stored.SerializeToString()), done.problem.batch.x
    with torch.no_grad():
        wanted = torch.cat([done.quantized.net(part) for part in x.split(TIMED)])
        got = torch.cat([session(part) for part in x.split(TIMED)])
    if (close := snr(wanted, got)) < LEAST_SNR:
        raise SqError(
            f"export=onnx: outputs of the file are {close:.1f} dB from ours, {LEAST_SNR:g} is the least: they part at "
            f"{_where(done, stored)}; use export=packed, and tell us"
        )
    again = done.measure(session)
    agree = {name: value for name, value in again.against(done.found).items() if not name.startswith("drop")}
    apart = {"outputs_apart": float((wanted - got).abs().max()), "outputs_snr_db": min(close, 999.0)}
    return {"bytes": file.stat().st_size, "opset": OPSET, "figures": again.figures} | apart | {"agreement": agree}


def snr(wanted: Tensor, got: Tensor) -> float:
    """Return how large `wanted` is over what `got` is apart from it, in decibels; inf where they are equal."""
    apart = (wanted.double() - got.double()).square().sum()
    return float(10 * (wanted.double().square().sum() / apart).log10()) if apart else float("inf")


def _where(done: Finished, stored: Any) -> str:
    """Return the first layer, in the order of execution, whose weight in the file is not ours, or the last of all."""
    from onnx import TensorProto, helper

    model = copy.deepcopy(stored)
    for layer in done.problem.model.layers:
        model.graph.output.append(helper.make_tensor_value_info(f"{layer.name}.weight", TensorProto.FLOAT, None))
    for layer in done.problem.model.layers:
        session = Session(model.SerializeToString(), [f"{layer.name}.weight"])
        ours = _weight(done.quantized.net, layer.name).detach().cpu().contiguous()
        if not torch.equal(session(done.problem.batch.x[:1].cpu()), ours):
            return f"the weight of {layer.name}"
    return "what layers are fed, or between layers: weights are ours"


def _weight(net: nn.Module, layer: str) -> Tensor:
    own = net.get_submodule(layer).weight
    assert isinstance(own, Tensor)
    return own
