"""First and last layer: whether they are quantized like the others. Published tables differ in it.

The policies: "all" treats them like the others, "8bit" gives the weights and inputs of the first
and last layer 8 bits, "keep" leaves both in full precision.
"""

from __future__ import annotations

from dataclasses import replace

from sq.errors import SqError
from sq.types.problem import Model

FIXED_BITS = 8  # of policy "8bit"


def kept_layers(model: Model, policy: str) -> tuple[str, ...]:
    """Return the names of the layers that `policy` keeps in full precision."""
    return model.ends if policy == "keep" else ()


def without_kept_layers(model: Model, policy: str) -> Model:
    """Return `model` without the layers that `policy` keeps in full precision.

    Raises
    ------
    SqError : no layer remains to be quantized
    """
    if policy != "keep":
        return model
    names = kept_layers(model, policy)
    layers = [layer for layer in model.layers if layer.name not in names]
    if not layers:
        raise SqError(
            f"ends=keep leaves nothing of {len(model.layers)} layers to quantize: set ends=8bit or "
            "ends=all"
        )
    return replace(model, layers=layers)


def fixed_bits(model: Model, policy: str) -> dict[str, int]:
    """Return the bits that `policy` fixes, by layer name; an allocation does not change them."""
    return dict.fromkeys(model.ends, FIXED_BITS) if policy == "8bit" else {}
