"""Squared gradients by the weights of layers, of every image on its own, which a batch's common gradient hides."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from sq.core.progress import track
from sq.network.derivatives import unfused
from sq.runtime import out_of_memory

GRADIENTS = 2**26  # elements of the gradients of all images that go together: 256 MiB in float32


def mean(
    net: nn.Module,
    weights: dict[str, Tensor],
    x: Tensor,
    of: Callable[[Tensor, Tensor], Tensor],
    beside: Callable[[slice], Tensor],
) -> dict[str, Tensor]:
    """Return E_n[g_n^2] by name, each of its weight's shape, where g_n is the gradient by it of one image's ``of``.

    Parameters
    ----------
    weights : of layers, by name; those of all other modules are constants
    x : images (B, ...)
    of : ``of(outputs, beside)`` is what is differentiated, a number, of one image: both have a
    first axis of 1
    beside : ``beside(place)`` is what else `of` takes, of the images at `place`, (images, ...)
    """
    given = {f"{name}.weight": weight for name, weight in weights.items()}

    def own(given: dict[str, Tensor], image: Tensor, other: Tensor) -> Tensor:
        return of(functional_call(net, given, (image.unsqueeze(0).clone(),)), other.unsqueeze(0))

    gradients = vmap(grad(own), in_dims=(None, 0, 0))
    size = max(1, GRADIENTS // sum(weight.numel() for weight in weights.values()))

    def attempt(size: int) -> dict[str, Tensor]:
        sums = {name: torch.zeros_like(weight) for name, weight in given.items()}
        for start in track(range(0, len(x), size), "sensitivity"):
            place = slice(start, min(start + size, len(x)))
            found = gradients(given, x[place], beside(place))
            for name, square in sums.items():
                square += found[name].square().sum(0)
        return sums

    with torch.no_grad(), unfused():  # no derivatives beyond those asked for
        sums = out_of_memory.fitting("sensitivity", attempt, min(size, len(x)))
    return {name: sums[f"{name}.weight"] / len(x) for name in weights}
