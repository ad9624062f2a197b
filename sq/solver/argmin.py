"""Argmin and argmax of rows, fast on the CPU, and an argmin that does not depend on rounding."""

import torch
from torch import Tensor

TIE = 1e-9  # relative: sums in float64 that are equal on paper differ by less


def first_argmin(values: Tensor) -> int:
    """Return the index of the first of `values` (n,) float64 that equals the minimum up to `TIE`.

    The choice between equally good candidates must not depend on the last bits of sums.
    """
    least = values.min()
    return int((values <= least + TIE * least.abs()).to(torch.int8).argmax())


def row_argmin(values: Tensor) -> Tensor:
    """Return the index of each row's minimum, (R,), for `values` (R, A); the first of equals."""
    if values.device.type == "cpu":  # NumPy's search is vectorised, PyTorch's on the CPU is not
        return torch.from_numpy(values.numpy().argmin(1))
    return values.argmin(1)


def row_argmax(values: Tensor) -> Tensor:
    """Return the index of each row's maximum, (R,), for `values` (R, A); the first of equals."""
    if values.device.type == "cpu":
        return torch.from_numpy(values.numpy().argmax(1))
    return values.argmax(1)
