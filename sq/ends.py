"""First and last layers: whether they are quantized like the rest. Published tables differ in it.

The policies: "all" treats them like the rest, "8bit" gives weights and inputs of the first and last layer 8 bits,
"keep" leaves both in full precision.
"""

from __future__ import annotations

from dataclasses import replace

from sq.errors import SqError
from sq.types import Model

WIDE = 8


def leave(model: Model, policy: str) -> Model:
    """Return `model` without the layers that `policy` leaves in full precision.

    Raises
    ------
    SqError : no layer is left to quantize
    """
    if policy != "keep":
        return model
    rest = [layer for layer in model.layers if layer.name not in model.ends]
    if not rest:
        raise SqError("ends=keep: the network has first and last layers only, none is left: set ends=all or ends=8bit")
    return replace(model, layers=rest)


def widths(model: Model, policy: str) -> dict[str, int]:
    """Return the bits that `policy` fixes, by layer name: no allocation decides them."""
    return dict.fromkeys(model.ends, WIDE) if policy == "8bit" else {}
