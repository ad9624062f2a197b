"""A network as a standard ONNX file: integers for weights, quantized inputs, in operators that every runtime has.

The file is run by onnxruntime before the run ends: its integers, its outputs and its figures stand beside ours.
"""

from __future__ import annotations

import copy
import io
import json
import warnings
from collections import Counter
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sq import activations, adds, hooks, images, needs, record
from sq.errors import SqError, one_line
from sq.finished import Finished
from sq.sites import holders

SUFFIX = "onnx"
OPSET = 21  # the first with integers of 4 bits
# Decibels, at least, of our outputs over their distance from the file's. Sums differ in their last digits alone, but
# where inputs are quantized some fall on the other side of a rounding for it.
LEAST_SNR, LEAST_SNR_ROUNDED = 60.0, 20.0
SMALL = 64  # bytes of constants that are computed beforehand: shapes, never codes


def write(done: Finished) -> dict[str, Any]:
    """Write the network of a run as ONNX, run the file, and say how far it is from what was measured.

    Returns
    -------
    the file's name under `outputs`, its bytes and operator set, the figures it reaches and how its outputs agree

    Raises
    ------
    SqError : a package is missing; what the format cannot hold, named, with the one that can; the
        disk is full; the file computes something else: where that begins is named
    """
    _need()
    model = _model(done)
    file = done.file(SUFFIX)
    with done.written(file) as part:
        record.write_bytes(part, model.SerializeToString())
        return {"format": "onnx", "file": done.name(file)} | _verify(done, part)


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
    calls = _calls(net, done.problem.batch.x[:1].cpu(), [layer.name for layer in done.problem.model.layers])
    for layer in done.problem.model.layers:
        if len(holders(done.problem.model.net, layer)) > 1:
            raise SqError(f"{layer.name} shares its weight, which export=onnx cannot hold: use export=packed")
        made, shape = done.quantized.layers[layer.name], tuple(_weight(net, layer.name).shape)
        own.put_weight(model.graph, layer.name, made.codes, made.grid, shape)
    for name, grid in fed.items():
        own.put_input(model.graph, name, grid, calls[name])
    onnx.checker.check_model(model, full_check=True)
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
    return _tidy(made.model_proto)


def _tidy(model: Any) -> Any:
    """Return the model with shapes computed beforehand; weights, and BatchNorm beside them, stay as they are."""
    from onnxscript import ir, optimizer

    made = ir.from_proto(model)
    weights = {tensor.name for tensor in model.graph.initializer}

    def may_fold(node: ir.Node) -> bool | None:
        return False if any(own is not None and own.name in weights for own in node.inputs) else None

    optimizer.fold_constants(made, input_size_limit=SMALL, output_size_limit=SMALL, should_fold=may_fold)
    optimizer.remove_unused_nodes(made)
    return ir.to_proto(made)


def _calls(net: nn.Module, x: Tensor, names: list[str]) -> Counter[str]:
    """Return how often each layer is called in a pass."""
    found: Counter[str] = Counter()
    modules = {name: net.get_submodule(name) for name in names}
    with torch.no_grad(), hooks.feeding(modules, lambda name, module, fed: found.update([name])):
        net(x)
    return found


class Session(nn.Module):
    """A file run by onnxruntime on the CPU, in the place of a network."""

    def __init__(self, model: bytes):
        super().__init__()
        import onnxruntime as ort

        own = ort.SessionOptions()
        own.intra_op_num_threads = torch.get_num_threads()
        own.log_severity_level = 3
        self.session = ort.InferenceSession(model, own, providers=["CPUExecutionProvider"])
        self.name = self.session.get_inputs()[0].name

    def forward(self, x: Tensor) -> Tensor:
        """Return the first output for images `x` (B, C, H, W)."""
        found = self.session.run(None, {self.name: x.cpu().contiguous().numpy()})
        return torch.from_numpy(found[0]).to(x.device)


def _verify(done: Finished, file: Path) -> dict[str, Any]:
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
        wanted = torch.cat([done.quantized.net(part) for part in images.split(x, None)])
        got = torch.cat([session(part) for part in images.split(x, None)])
    if (other := _other_weight(done, stored)) is not None:
        raise SqError(f"export=onnx: the weight of {other} is not ours in the file; use export=packed, and tell us")
    least = LEAST_SNR_ROUNDED if activations.attached(done.quantized.net) else LEAST_SNR
    if not (close := snr(wanted, got)) >= least:  # NaN is not
        raise SqError(
            f"export=onnx: outputs of the file are {close:.1f} dB from ours, {least:g} is the least, although weights "
            "are ours: they part at what layers are fed, or between layers; use export=packed, and tell us"
        )
    again = done.measure(session)
    agree = {name: value for name, value in again.against(done.found).items() if not name.startswith("drop")}
    apart = {"outputs_apart": float((wanted - got).abs().max()), "outputs_snr_db": min(close, 999.0)}
    return {"bytes": file.stat().st_size, "opset": OPSET, "figures": again.figures} | apart | {"agreement": agree}


def snr(wanted: Tensor, got: Tensor) -> float:
    """Return how large `wanted` is over what `got` is apart from it, in decibels; inf where they are equal."""
    apart = (wanted.double() - got.double()).square().sum()
    return float(10 * (wanted.double().square().sum() / apart).log10()) if apart else float("inf")


def _other_weight(done: Finished, stored: Any) -> str | None:
    """Return the first layer, in the order of execution, whose weight in the file is not ours bit by bit."""
    from onnx import TensorProto, helper

    names, model = [layer.name for layer in done.problem.model.layers], copy.deepcopy(stored)
    for name in names:
        model.graph.output.append(helper.make_tensor_value_info(f"{name}.weight", TensorProto.FLOAT, None))
    session = Session(model.SerializeToString()).session
    fed = {session.get_inputs()[0].name: done.problem.batch.x[:1].cpu().contiguous().numpy()}
    found = session.run([f"{name}.weight" for name in names], fed)
    for name, own in zip(names, found, strict=True):
        if not torch.equal(torch.from_numpy(own), _weight(done.quantized.net, name).detach().cpu().contiguous()):
            return name
    return None


def _weight(net: nn.Module, layer: str) -> Tensor:
    own = net.get_submodule(layer).weight
    assert isinstance(own, Tensor)
    return own
