"""Where the smallest or largest value is: of rows, which greedy choices ask once a step, and of candidates."""

import torch
from torch import Tensor

TIE = 1e-9  # relative: sums in float64 that are equal on paper differ by less


def first_least(values: Tensor) -> int:
    """Return the place of the first of `values` (n,) float64 that is no larger than the least, up to `TIE`.

    Which of candidates that are equally good is taken must not depend on the last bits of sums.
    """
    least = values.min()
    return int((values <= least + TIE * least.abs()).to(torch.int8).argmax())


def lowest(values: Tensor) -> Tensor:
    """Return each row's place (R,) of the smallest of `values` (R, A), the first of equals."""
    if values.device.type == "cpu":  # NumPy's search is vectorised, PyTorch's on the CPU is not
        return torch.from_numpy(values.numpy().argmin(1))
    return values.argmin(1)


def highest(values: Tensor) -> Tensor:
    """Return each row's place (R,) of the largest of `values` (R, A), the first of equals."""
    if values.device.type == "cpu":
        return torch.from_numpy(values.numpy().argmax(1))
    return values.argmax(1)
