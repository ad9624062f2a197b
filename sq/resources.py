"""What a network takes at given bits, each counted in this one place: what records say and what budgets bound agree."""

from __future__ import annotations

from collections.abc import Iterable

from sq.types import Layer, Model

FLOAT = 32  # bits of a number that stays unquantized


def code_bytes(layer: Layer, bits: int) -> int:
    """Return the bytes of a layer's codes."""
    return -(-layer.weights * bits // 8)


def bops(layer: Layer, bits: int, inputs: int) -> int:
    """Return multiply-accumulates times bits of weights times bits of inputs, for one image."""
    return layer.macs * bits * inputs


def rest(whole: Model, layers: Iterable[Layer]) -> dict[str, int]:
    """Return the bytes and BOPs of all that stays in full precision where `layers` are quantized."""
    names = {layer.name for layer in layers}
    numbers = sum(t.numel() for t in whole.net.state_dict().values() if t.is_floating_point())
    kept = numbers - sum(layer.weights for layer in whole.layers if layer.name in names)
    left = sum(bops(layer, FLOAT, FLOAT) for layer in whole.layers if layer.name not in names)
    return {"bytes": kept * FLOAT // 8, "bops": left}
