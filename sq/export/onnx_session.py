"""ONNX models run by onnxruntime on the CPU: as networks, for what they compute, and for how long they take."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import chain
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

# Decibels, at least, of our outputs over their distance from a model's. Sums differ in their last
# digits alone, but where inputs are quantized some fall on the other side of a rounding for it.
LEAST_SNR, LEAST_SNR_ROUNDED = 60.0, 20.0
# Left to itself, onnxruntime rounds to 8 bits what linear layers of tokens are fed in full
# precision.
FLOATS = {"session.qdq_matmulnbits_accuracy_level": "1"}
# Products of bytes are summed exactly where a processor has no VNNI as well: see
# `sq.core.processor`.
EXACT = FLOATS | {"session.x64quantprecision": "1"}
# threads of a session that is not running keep no core busy
ALONE = {"session.force_spinning_stop": "1"}


def open_session(model: bytes, threads: int, entries: Mapping[str, str] = FLOATS) -> Any:
    """Return an `onnxruntime.InferenceSession` on the CPU.

    Raises
    ------
    SqError : onnxruntime does not take the model
    """
    import onnxruntime as ort

    own = ort.SessionOptions()
    own.intra_op_num_threads = threads
    own.log_severity_level = 3
    for name, value in entries.items():
        own.add_session_config_entry(name, value)
    try:
        return ort.InferenceSession(model, own, providers=["CPUExecutionProvider"])
    except Exception as error:  # whatever its loader raises
        raise SqError(f"onnxruntime does not take the model ({one_line(error)[:200]})") from error


class Session(nn.Module):
    """A model run by onnxruntime on the CPU, in the place of a network."""

    def __init__(self, model: bytes, entries: Mapping[str, str] = FLOATS):
        super().__init__()
        self.session = open_session(model, torch.get_num_threads(), entries)
        self.name = self.session.get_inputs()[0].name

    def forward(self, x: Tensor) -> Tensor:
        """Return the first output for images `x` (B, C, H, W)."""
        found = self.session.run(None, {self.name: x.cpu().contiguous().numpy()})
        return torch.from_numpy(found[0]).to(x.device)


def weights_in(model: Any, names: Iterable[str], x: Tensor) -> dict[str, Tensor]:
    """Return the weights that a quantized model computes with, as onnxruntime has them, by layer name."""
    from onnx import TensorProto, helper

    wanted, told = list(names), duplicate(model)
    for name in wanted:
        told.graph.output.append(
            helper.make_tensor_value_info(f"{name}.weight", TensorProto.FLOAT, None)
        )
    session = open_session(told.SerializeToString(), torch.get_num_threads())
    fed = {session.get_inputs()[0].name: x[:1].cpu().contiguous().numpy()}
    found = session.run([f"{name}.weight" for name in wanted], fed)
    return {name: torch.from_numpy(own) for name, own in zip(wanted, found, strict=True)}


def compare(net: nn.Module, model: Any, layers: list[str], x: Tensor) -> tuple[float, float]:
    """Return how far outputs of an ONNX model are from those of a network over images `x`: at most, and in decibels.

    Sums of products of bytes are exact, whatever processor this is: what is compared is what the
    model says.

    Parameters
    ----------
    layers : names of those that are quantized

    Raises
    ------
    SqError : farther than their arithmetic explains; where that begins is named
    """
    session = Session(model.SerializeToString(), EXACT)
    with torch.no_grad():
        wanted = torch.cat([forward(net, part) for part in batching.split(x, None)])
        got = torch.cat([session(part) for part in batching.split(x, None)])
    least = (
        LEAST_SNR_ROUNDED if insertion.attached(net) or residual_adds.attached(net) else LEAST_SNR
    )
    if not (close := snr(wanted, got)) >= least:  # NaN is not
        raise SqError(
            f"outputs of the ONNX model are {close:.1f} dB from ours, {least:g} is the least: it begins "
            f"{_where(net, model, layers, x[:2], least)}"
        )
    return float((wanted - got).abs().max()), min(close, 999.0)


def lost(model: bytes, x: Tensor) -> float:
    """Return decibels of a model's exact outputs for images `x` over what saturated sums take off on this processor."""
    exact, plain = Session(model, EXACT), Session(model)
    wanted, found = (
        torch.cat([own(part) for part in batching.split(x, None)]) for own in (exact, plain)
    )
    return min(snr(wanted, found), 999.0)


def _where(net: nn.Module, model: Any, layers: list[str], x: Tensor, least: float) -> str:
    """Return in words which layer, in the order of execution, is the first that is fed something else than ours is."""
    from onnx import TensorProto, helper

    from sq.export import onnx_qdq

    told = duplicate(model)
    places = {
        name: [node.input[0] for node in onnx_qdq.users(told.graph, f"{name}.weight")]
        for name in layers
    }
    given = {own.name for own in told.graph.input}
    wanted = [
        place for place in dict.fromkeys(chain.from_iterable(places.values())) if place not in given
    ]
    told.graph.output.extend(
        helper.make_tensor_value_info(place, TensorProto.FLOAT, None) for place in wanted
    )
    session = open_session(told.SerializeToString(), torch.get_num_threads(), EXACT)
    images_in = {session.get_inputs()[0].name: x.cpu().contiguous().numpy()}
    found = {
        place: torch.from_numpy(own)
        for place, own in zip(wanted, session.run(wanted, images_in), strict=True)
    }
    parted: list[str] = []
    modules = {name: net.get_submodule(name) for name in layers}

    def see(name: str, module: nn.Module, fed: Tensor) -> None:
        own = found.get(places[name].pop(0))
        if own is not None and own.shape == fed.shape and not snr(fed.cpu(), own) >= least:
            parted.append(name)

    with torch.no_grad(), hooks.feeding(modules, see):
        forward(net, x)
    return f"at what {parted[0]} is fed" if parted else "between layers, or after the last"


def snr(wanted: Tensor, got: Tensor) -> float:
    """Return how large `wanted` is over what `got` is apart from it, in decibels; inf where they are equal."""
    apart = (wanted.double() - got.double()).square().sum()
    return float(10 * (wanted.double().square().sum() / apart).log10()) if apart else float("inf")


def race(
    entrants: Mapping[str, tuple[Any, Tensor]], cores: int, rounds: int, warmup: int, what: str
) -> dict[str, np.ndarray]:
    """Return the milliseconds (rounds,) of models, each on its own input, in turns; see `interleaved_timing.race`.

    Parameters
    ----------
    cores : threads of each
    """
    passes = {}
    for name, (model, x) in entrants.items():
        session = open_session(model.SerializeToString(), cores, FLOATS | ALONE)
        passes[name] = _bound(session, {session.get_inputs()[0].name: x.numpy()})
    return interleaved_timing.race(passes, rounds, warmup, what)


def _bound(session: Any, fed: dict[str, np.ndarray]) -> Any:
    return lambda: session.run(None, fed)
