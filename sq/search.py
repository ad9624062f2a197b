"""Where a row's smallest or largest value is: what every greedy choice asks, once a step."""

import torch
from torch import Tensor


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
