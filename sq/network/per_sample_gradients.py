"""Squared gradients of single images by layer weights; a batch's gradient hides them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from sq.core.progress import track
from sq.network.derivatives import unfused_attention
from sq.runtime import out_of_memory

# Elements of the gradients of all images that are computed together: 256 MiB in float32.
GRADIENT_ELEMENTS = 2**26


def mean_squares(
    net: nn.Module,
    weights: dict[str, Tensor],
    x: Tensor,
    of: Callable[[Tensor, Tensor], Tensor],
    other: Callable[[slice], Tensor],
) -> dict[str, Tensor]:
    """Return E_n[g_n^2] by layer name, each of its weight's shape, g_n the gradient of one image.

    Parameters
    ----------
    weights : of layers, by name; those of all other modules are constants
    x : images (B, ...)
    of : ``of(outputs, other)`` is the number to differentiate, of one image: both arguments have a
        first axis of 1
    other : ``other(positions)`` is the second argument of `of`, for the images at these positions,
        (images, ...)
    """
    parameters = {f"{name}.weight": weight for name, weight in weights.items()}

    def image_value(parameters: dict[str, Tensor], image: Tensor, other_value: Tensor) -> Tensor:
        outputs = functional_call(net, parameters, (image.unsqueeze(0).clone(),))
        return of(outputs, other_value.unsqueeze(0))

    gradients = vmap(grad(image_value), in_dims=(None, 0, 0))
    elements = sum(weight.numel() for weight in weights.values())
    batch_size = max(1, GRADIENT_ELEMENTS // elements)

    def attempt(size: int) -> dict[str, Tensor]:
        sums = {name: torch.zeros_like(weight) for name, weight in parameters.items()}
        for start in track(range(0, len(x), size), "sensitivity"):
            positions = slice(start, min(start + size, len(x)))
            batch_gradients = gradients(parameters, x[positions], other(positions))
            for name, total in sums.items():
                total += batch_gradients[name].square().sum(0)
        return sums

    # `grad` turns gradients on where it needs them; nothing else is to be differentiated.
    with torch.no_grad(), unfused_attention():
        sums = out_of_memory.fitting("sensitivity", attempt, min(batch_size, len(x)))
    return {name: sums[f"{name}.weight"] / len(x) for name in weights}
