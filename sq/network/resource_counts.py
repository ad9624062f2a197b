"""What a network takes at given bits, each counted in this one place: what records say and what budgets bound agree."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

from torch import nn

from sq.config.constraints import FLOAT
from sq.network import geometry as own
from sq.types.problem import Grid, Layer, Model, Problem


def code_bytes(layer: Layer, bits: int) -> int:
    """Return the bytes of a layer's codes."""
    return -(-layer.weights * bits // 8)


def code_bits(grid: Grid) -> int:
    """Return the bits that a code of `grid` takes, all codes alike: 5 for the 17 levels of POST at 4 bits, say."""
    return (grid.levels - 1).bit_length()


def weight_bytes(layer: Layer, grid: Grid) -> int:
    """Return the bytes of a layer's weights: codes at `code_bits`, and scales, zero points and tables in 32 bits."""
    return code_bytes(layer, code_bits(grid)) + grid.parameters() * FLOAT // 8


def bops(layer: Layer, bits: int, inputs: int) -> int:
    """Return multiply-accumulates times bits of weights times bits of inputs, for one image."""
    return layer.macs * bits * inputs


def numbers(net: nn.Module) -> int:
    """Return how many floating-point numbers are stored of a network; what modules share counts once."""
    stored = {id(t): t for t in net.state_dict(keep_vars=True).values()}
    return sum(t.numel() for t in stored.values() if t.is_floating_point())


def sizes(problem: Problem) -> Callable[[Layer, int], int]:
    """Return a function of a layer and bits that tells `weight_bytes` before anything is solved."""
    # One input has as many levels and scales as all of them, and is fitted at once.
    thin = replace(problem, importance={name: h[..., :1] for name, h in problem.importance.items()})
    known: dict[tuple[str, int], int] = {}

    def size(layer: Layer, bits: int) -> int:
        if (key := (layer.name, bits)) not in known:
            known[key] = weight_bytes(
                layer, thin.grid(layer.name, own.weight(layer.module)[..., :1], bits)
            )
        return known[key]

    return size


def beside(whole: Model, layers: Iterable[Layer]) -> dict[str, int]:
    """Return the bytes and BOPs of all that stays in full precision where `layers` are quantized."""
    names = {layer.name for layer in layers}
    kept = numbers(whole.net) - sum(layer.weights for layer in whole.layers if layer.name in names)
    left = sum(bops(layer, FLOAT, FLOAT) for layer in whole.layers if layer.name not in names)
    return {"bytes": kept * FLOAT // 8, "bops": left}
