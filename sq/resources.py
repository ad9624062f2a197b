"""What a network takes at given bits, each counted in this one place: what records say and what budgets bound agree."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from torch import nn

from sq import layers as own
from sq.types import Layer, Model, Problem

FLOAT = 32  # bits of a number that stays unquantized
GRID_BITS = 8  # of the grids whose parameters are counted


def code_bytes(layer: Layer, bits: int) -> int:
    """Return the bytes of a layer's codes."""
    return -(-layer.weights * bits // 8)


def bops(layer: Layer, bits: int, inputs: int) -> int:
    """Return multiply-accumulates times bits of weights times bits of inputs, for one image."""
    return layer.macs * bits * inputs


def numbers(net: nn.Module) -> int:
    """Return how many floating-point numbers are stored of a network; what modules share counts once."""
    stored = {id(t): t for t in net.state_dict(keep_vars=True).values()}
    return sum(t.numel() for t in stored.values() if t.is_floating_point())


def grid_bytes(problem: Problem) -> int:
    """Return the bytes of the parameters of all weights' grids, of which there are as many at any bits and inputs."""
    thin = replace(problem, importance={name: h[..., :1] for name, h in problem.importance.items()})  # as many, at once
    grids = (thin.grid(layer.name, own.weight(layer.module)[..., :1], GRID_BITS) for layer in problem.model.layers)
    return sum(grid.parameters() for grid in grids) * FLOAT // 8


def rest(whole: Model, problem: Problem) -> dict[str, int]:
    """Return the bytes and BOPs of all that no bits of the layers of `problem` change, grids of weights included."""
    found = beside(whole, problem.model.layers)
    return found | {"bytes": found["bytes"] + grid_bytes(problem)}


def beside(whole: Model, layers: Iterable[Layer]) -> dict[str, int]:
    """Return the bytes and BOPs of all that stays in full precision where `layers` are quantized."""
    names = {layer.name for layer in layers}
    kept = numbers(whole.net) - sum(layer.weights for layer in whole.layers if layer.name in names)
    left = sum(bops(layer, FLOAT, FLOAT) for layer in whole.layers if layer.name not in names)
    return {"bytes": kept * FLOAT // 8, "bops": left}
