"""One image through the network: which layers it calls, in which order, and how many outputs they have."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from sq import hooks, layers
from sq.errors import SqError
from sq.network.forward import forward
from sq.types import Model


def settle(model: Model, x: Tensor) -> Model:
    """Return `model` with its layers in the order they are called, their positions, what feeds them, and its ends.

    Layers that are never called (`nn.MultiheadAttention` uses the weight of its `out_proj` without calling it)
    cannot be quantized here: they join `skipped`.

    Parameters
    ----------
    x : one image (1, C, H, W)

    Raises
    ------
    SqError : no layer that can be quantized is called
    """
    positions: dict[str, int] = {}
    fed: dict[
        tuple[int, int], tuple[str, Tensor]
    ] = {}  # by tensor and version of it, kept so that none takes its place

    first: dict[str, str] = {}

    def look(name: str, module: nn.Module, given: Tensor) -> None:
        first.setdefault(name, fed.setdefault((id(given), given._version), (name, given))[0])

    def count(name: str, module: nn.Module, output: Tensor) -> None:
        positions[name] = positions.get(name, 0) + layers.positions(module, output)

    modules = {layer.name: layer.module for layer in model.layers}
    with torch.no_grad(), hooks.feeding(modules, look), hooks.returning(modules, count):
        forward(model.net, x)
    own = {layer.name: layer for layer in model.layers}
    if not positions:
        raise SqError(f"no layer of {type(model.net).__name__} can be quantized: choose another model")
    skipped = [f"{name} (never called)" for name in own if name not in positions]
    order = [replace(own[name], positions=count, fed=first[name]) for name, count in positions.items()]
    ends = model.ends or (order[0].name, order[-1].name)
    return replace(model, layers=order, skipped=model.skipped + skipped, ends=ends)
