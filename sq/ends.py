"""First and last layers: whether they are quantized like the rest. Published tables differ in it.

The policies: "all" treats them like the rest, "8bit" gives weights and inputs of the first and last layer 8 bits,
"keep" leaves both in full precision.
"""

from __future__ import annotations

from dataclasses import replace

from sq.types import Model

WIDE = 8


def leave(model: Model, policy: str) -> Model:
    """Return `model` without the layers that `policy` leaves in full precision."""
    if policy != "keep":
        return model
    return replace(model, layers=[layer for layer in model.layers if layer.name not in model.ends])


def widths(model: Model, policy: str) -> dict[str, int]:
    """Return the bits that `policy` fixes, by layer name: no allocation decides them."""
    return dict.fromkeys(model.ends, WIDE) if policy == "8bit" else {}
