"""ONNX models run by onnxruntime on the CPU: as networks, to compare outputs, and to time them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sq.activation import insertion
from sq.errors import SqError, one_line
from sq.export.onnx_export import duplicate
from sq.network import hooks, residual_adds
from sq.network.forward import forward
from sq.runtime import batching, interleaved_timing

# Least SNR of our outputs over their distance from a model's, in decibels. Sums differ only in
# their last digits; but where inputs are quantized, a few therefore round to another value.
MIN_SNR, MIN_SNR_ROUNDED = 60.0, 20.0
MAX_SNR = 999.0  # in records, for equal outputs: JSON has no infinity

# Session config entries.
# By default, onnxruntime rounds full-precision inputs of linear layers of tokens to 8 bits.
FLOAT_INPUTS = {"session.qdq_matmulnbits_accuracy_level": "1"}
# Sums of products of bytes are exact on processors without VNNI as well: see `sq.core.processor`.
EXACT_SUMS = FLOAT_INPUTS | {"session.x64quantprecision": "1"}
# Threads of a session that is not running keep no core busy.
NO_SPINNING = {"session.force_spinning_stop": "1"}


def open_session(model: bytes, threads: int, entries: Mapping[str, str] = FLOAT_INPUTS) -> Any:
    """Return an `onnxruntime.InferenceSession` on the CPU with config `entries`.

    Raises
    ------
    SqError : onnxruntime does not take the model
    """
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    for name, value in entries.items():
        options.add_session_config_entry(name, value)
    try:
        return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its loader can raise anything
        raise SqError(f"onnxruntime does not take the model ({one_line(error)[:200]})") from error


class Session(nn.Module):
    """A model run by onnxruntime on the CPU, as a network."""

    def __init__(self, model: bytes, entries: Mapping[str, str] = FLOAT_INPUTS):
        super().__init__()
        self.session = open_session(model, torch.get_num_threads(), entries)
        self.name = self.session.get_inputs()[0].name

    def forward(self, x: Tensor) -> Tensor:
        """Return the first output for images `x` (B, C, H, W)."""
        outputs = self.session.run(None, {self.name: x.cpu().contiguous().numpy()})
        return torch.from_numpy(outputs[0]).to(x.device)

    def outputs(self, x: Tensor) -> Tensor:
        """Return the first output for any number of images `x`, batch by batch."""
        return torch.cat([self(images) for images in batching.split(x, None)])


def weights_in(model: Any, names: Iterable[str], x: Tensor) -> dict[str, Tensor]:
    """Return the weights that onnxruntime decodes in a quantized model, by layer name."""
    names = list(names)
    weights = [f"{name}.weight" for name in names]
    values = _intermediate(model, weights, x[:1], FLOAT_INPUTS)
    return {name: values[weight] for name, weight in zip(names, weights, strict=True)}


def _intermediate(
    model: Any, names: list[str], x: Tensor, entries: Mapping[str, str]
) -> dict[str, Tensor]:
    """Return intermediate values of an ONNX model for images `x`, by name."""
    from onnx import TensorProto, helper

    extended = duplicate(model)
    for name in names:
        value = helper.make_tensor_value_info(name, TensorProto.FLOAT, None)
        extended.graph.output.append(value)
    session = open_session(extended.SerializeToString(), torch.get_num_threads(), entries)
    images = {session.get_inputs()[0].name: x.cpu().contiguous().numpy()}
    values = session.run(names, images)
    return {name: torch.from_numpy(value) for name, value in zip(names, values, strict=True)}


def compare(net: nn.Module, model: Any, layers: list[str], x: Tensor) -> tuple[float, float]:
    """Return the largest difference and the SNR (decibels) of a model's outputs and a network's.

    Sums of products of bytes are exact on every processor, so the model itself is compared.

    Parameters
    ----------
    layers : names of the quantized ones
    x : (B, ...), images

    Raises
    ------
    SqError : they differ by more than arithmetic explains; where that begins is named
    """
    session = Session(model.SerializeToString(), EXACT_SUMS)
    with torch.no_grad():
        expected = torch.cat([forward(net, images) for images in batching.split(x, None)])
        outputs = session.outputs(x)
    is_rounded = insertion.attached(net) or residual_adds.attached(net)
    least = MIN_SNR_ROUNDED if is_rounded else MIN_SNR
    decibels = snr(expected, outputs)
    if not decibels >= least:  # also if it is NaN
        raise SqError(
            f"outputs of the ONNX model are {decibels:.1f} dB from ours, {least:g} is the least: "
            f"it begins {_first_difference(net, model, layers, x[:2], least)}"
        )
    return float((expected - outputs).abs().max()), min(decibels, MAX_SNR)


def saturation_snr(model: bytes, x: Tensor) -> float:
    """Return the SNR of a model's exact outputs over the error of saturation here, in decibels."""
    exact = Session(model, EXACT_SUMS).outputs(x)
    saturated = Session(model).outputs(x)
    return min(snr(exact, saturated), MAX_SNR)


def _first_difference(
    net: nn.Module, model: Any, layers: list[str], x: Tensor, least: float
) -> str:
    """Return, for a message, the first executed layer whose input differs from ours."""
    from sq.export import onnx_qdq

    # The names of a layer's inputs in the graph, call by call.
    inputs: dict[str, list[str]] = {}
    names: dict[str, None] = {}  # ordered, without repetitions
    images = {value.name for value in model.graph.input}
    for layer in layers:
        of_layer = [node.input[0] for node in onnx_qdq.users(model.graph, f"{layer}.weight")]
        inputs[layer] = of_layer
        names |= dict.fromkeys(name for name in of_layer if name not in images)
    values = _intermediate(model, list(names), x, EXACT_SUMS)
    differing: list[str] = []

    def check(layer: str, module: nn.Module, expected: Tensor) -> None:
        value = values.get(inputs[layer].pop(0))
        if value is None or value.shape != expected.shape:
            return
        if not snr(expected.cpu(), value) >= least:
            differing.append(layer)

    with torch.no_grad(), hooks.feeding({name: net.get_submodule(name) for name in layers}, check):
        forward(net, x)
    if not differing:
        return "between layers, or after the last"
    return f"at the input of {differing[0]}"


def snr(expected: Tensor, x: Tensor) -> float:
    """Return the signal-to-noise ratio of `x` in decibels; inf if it equals `expected`."""
    noise = (expected.double() - x.double()).square().sum()
    if not noise:
        return float("inf")
    return float(10 * (expected.double().square().sum() / noise).log10())


def race(
    entrants: Mapping[str, tuple[Any, Tensor]], cores: int, rounds: int, warmup: int, what: str
) -> dict[str, np.ndarray]:
    """Return the milliseconds (rounds,) of models, each on its own input, in turns.

    See `interleaved_timing.race`.

    Parameters
    ----------
    entrants : model and input, by name
    cores : threads of each model
    """
    passes = {}
    for name, (model, x) in entrants.items():
        session = open_session(model.SerializeToString(), cores, FLOAT_INPUTS | NO_SPINNING)
        passes[name] = partial(session.run, None, {session.get_inputs()[0].name: x.numpy()})
    return interleaved_timing.race(passes, rounds, warmup, what)
