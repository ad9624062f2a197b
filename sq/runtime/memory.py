"""Whether Hessians fit in memory: asked before the first image is seen, since nothing can be saved afterwards."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from sq.errors import SqError
from sq.types.problem import Layer

NUMBER = 8  # bytes of a float64
# While a layer is solved its H is held four times more: damped, in the weight's precision,
# factored, permuted.
SOLVING = 4
GIB = 2**30


def available(device: torch.device) -> int:
    """Return the bytes of memory free on `device`."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    import psutil

    return psutil.virtual_memory().available


def check(layers: Sequence[Layer], device: torch.device) -> None:
    """Raise an `SqError` that names the largest layer unless all Hessians of `layers` fit in free memory at once.

    A Hessian has a square of numbers for a layer's inputs: (G, I, I).
    """
    sizes = {layer.name: NUMBER * layer.groups * layer.inputs**2 for layer in layers}
    largest = max(layers, key=lambda layer: sizes[layer.name], default=None)
    if largest is None:
        return
    need, free = sum(sizes.values()) + SOLVING * sizes[largest.name], available(device)
    if need > free:
        raise SqError(
            f"layer {largest.name} has {largest.inputs} columns, a Hessian of {sizes[largest.name] / GIB:.2g} GiB; "
            f"all layers' and the work on it need {need / GIB:.2g} GiB, {free / GIB:.2g} GiB are free on {device}: "
            "free memory or use a machine with more"
        )
