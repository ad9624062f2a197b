"""Check that all Hessians fit in memory, before calibration starts."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from sq.errors import SqError
from sq.types.problem import Layer

FLOAT64 = 8  # bytes
# Copies of H that solving a layer needs: damped, in the weight's precision, factored, permuted.
SOLVER_COPIES = 4
GIB = 2**30


def available(device: torch.device) -> int:
    """Return the bytes of memory free on `device`."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    import psutil

    return psutil.virtual_memory().available


def check(layers: Sequence[Layer], device: torch.device) -> None:
    """Raise an `SqError` that names the largest layer if the Hessians do not fit in memory."""
    if not layers:
        return
    # bytes of each Hessian (G, I, I)
    sizes = {layer.name: FLOAT64 * layer.groups * layer.inputs**2 for layer in layers}
    largest = max(layers, key=lambda layer: sizes[layer.name])
    need = sum(sizes.values()) + SOLVER_COPIES * sizes[largest.name]
    free = available(device)
    if need > free:
        raise SqError(
            f"layer {largest.name} has {largest.inputs} columns, a Hessian of "
            f"{sizes[largest.name] / GIB:.2g} GiB; all Hessians and the work on it need "
            f"{need / GIB:.2g} GiB, {free / GIB:.2g} GiB are free on {device}: "
            "free memory or use a machine with more"
        )
