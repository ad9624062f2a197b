"""First and last layers: whether they are quantized like the rest. Published tables differ in it.

The policies: "all" treats them like the rest, "8bit" gives weights and inputs of the first and last
layer 8 bits, "keep" leaves both in full precision.
"""

from __future__ import annotations

from dataclasses import replace

from sq.errors import SqError
from sq.types.problem import Model

WIDE = 8


def kept(model: Model, policy: str) -> tuple[str, ...]:
    """Return the names of the layers that `policy` leaves in full precision."""
    return model.ends if policy == "keep" else ()


def leave(model: Model, policy: str) -> Model:
    """Return `model` without the layers that `policy` leaves in full precision.

    Raises
    ------
    SqError : none are left to quantize
    """
    if policy != "keep":
        return model
    left = [layer for layer in model.layers if layer.name not in kept(model, policy)]
    if not left:
        raise SqError(
            f"ends=keep leaves nothing of {len(model.layers)} layers to quantize: set ends=8bit or ends=all"
        )
    return replace(model, layers=left)


def widths(model: Model, policy: str) -> dict[str, int]:
    """Return the bits that `policy` fixes, by layer name: no allocation decides them."""
    return dict.fromkeys(model.ends, WIDE) if policy == "8bit" else {}
