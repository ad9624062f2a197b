"""Label-free scores: what a change of a layer's output, or of a weight, does to the network's raw outputs.

At a trained network the Hessian of any loss of the outputs f is bounded by J^T J up to a factor
that all layers share, J = df/dz, and no label is looked at (see `sq.sensitivity.label_free`). Its
diagonal is an expectation over vectors v with E[v v^T] = I, and a sum over unit vectors:

    diag(J^T J) = E_v[(J^T v)^2] = sum_k (J^T e_k)^2.

So where there are no more outputs than draws, the sum is taken: it is exact, and takes fewer
passes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from sq.config.constraints import Count, Draws, Positive, Whole
from sq.core.progress import track
from sq.errors import SqError
from sq.network import geometry, hooks, per_sample_gradients
from sq.network.derivatives import SECOND_ORDER_MEMORY
from sq.network.forward import forward
from sq.network.weight_swap import original_weight
from sq.runtime import batching, out_of_memory
from sq.runtime import monte_carlo as random
from sq.types.problem import Model


def activation_scores(model: Model, x: Tensor, draws: Draws, seed: Whole) -> dict[str, Tensor]:
    """Return w (B,) float32 by layer name: of each image, max over channels c of mean over space of diag(J^T J).

    J is of the raw outputs by the layer's own output, as it leaves the module. Of a layer that is
    called several times in a pass, the call of the largest score counts. One backward pass serves
    all layers.

    Parameters
    ----------
    model : in full precision, in eval mode
    x : images (B, ...)
    draws : random vectors for each image; from as many as an image has outputs on, the score is
    exact instead.
        Each image has vectors of its own, whatever images go together
    seed : of the vectors

    Raises
    ------
    SqError : the network returns no tensor with one row for each image, or a layer no such output

    Source
    ------
    Gordon et al. 2023 (EPTQ), arXiv 2309.11531, sample-layer attention: v Rademacher, 100 draws.
    Unit vectors in their place are ours, and so is what is done with several calls.
    """
    vectors = _Vectors(_shape(model, x), draws, seed, random.signs)

    def attempt(size: int) -> dict[str, Tensor]:
        places = [range(start, min(start + size, len(x))) for start in range(0, len(x), size)]
        parts = [
            _scores(model, x[own.start : own.stop], own, vectors) for own in track(places, "scores")
        ]
        return {
            layer.name: torch.cat([part[layer.name] for part in parts]) for layer in model.layers
        }

    with torch.enable_grad():
        return out_of_memory.fitting(
            "scores",
            attempt,
            max(1, batching.images_per_pass(x.shape[1:], None) // SECOND_ORDER_MEMORY),
        )


def weight_scores(
    model: Model, x: Tensor, *, images: Count, draws: Draws, tolerance: Positive, seed: Whole
) -> tuple[dict[str, Tensor], int]:
    """Return h (G, O, I) by layer name, the mean over images of diag(J^T J) by its weights, and the draws it took.

    Parameters
    ----------
    model : in full precision, in eval mode
    x : images (B, ...)
    images : of which the first so many are used; all, if there are fewer
    draws : random vectors for each image, at most; from as many as an image has outputs on, h is
    exact instead
    tolerance : no more are drawn once the standard error of the sum of h over each output channel
    is so small,
        relative to the sum: a range is chosen for a channel, by such sums
    seed : of the vectors

    Raises
    ------
    SqError : the network returns no tensor with one row for each image

    Source
    ------
    Gordon et al. 2023 (EPTQ), arXiv 2309.11531, weights' label-free Hessian (Hmse): v ~ N(0, I), 64
    images, 100 draws. Unit vectors in their place are ours, and so is when it stops.
    """
    x = x[:images]
    vectors = _Vectors(_shape(model, x), draws, seed, _normal)
    weights = {layer.name: original_weight(layer) for layer in model.layers}
    sums = {layer.name: torch.zeros_like(geometry.weight(layer.module)) for layer in model.layers}

    def draw(number: int) -> Tensor:
        def own(place: slice) -> Tensor:
            return vectors.of(number, range(place.start, place.stop)).to(x)

        found = per_sample_gradients.mean_squares(
            model.net, weights, x, lambda outputs, v: (v * outputs).sum(), own
        )
        for name, total in sums.items():
            total += found[name].reshape(total.shape)
        return torch.cat(
            [found[name].reshape(total.shape).sum(-1).flatten() for name, total in sums.items()]
        )

    if vectors.exact:
        for number in track(range(vectors.count), "scores"):
            draw(number)
        return sums, vectors.count
    _, _, made = random.average(draw, draws, tolerance)
    return {name: total / made for name, total in sums.items()}, made


@dataclass(frozen=True)
class _Vectors:
    """The vectors v of each image: unit vectors, if there are no more than `draws`, or random ones of its own.

    `shape` is that of one image's outputs, and ``one(like, generator)`` draws one such tensor.
    """

    shape: tuple[int, ...]
    draws: int
    seed: int
    one: Callable[[Tensor, torch.Generator], Tensor]

    @property
    def exact(self) -> bool:
        return math.prod(self.shape) <= self.draws

    @property
    def count(self) -> int:
        return min(math.prod(self.shape), self.draws)

    def of(self, number: int, places: range) -> Tensor:
        """Return vector `number` of the images at `places`, (images, ...), on the CPU."""
        if self.exact:
            one = torch.zeros(self.shape)
            one.view(-1)[number] = 1
            return one.expand(len(places), *self.shape)
        like = torch.empty(self.shape)
        return torch.stack(
            [self.one(like, random.generator(self.seed, number, place)) for place in places]
        )


def _normal(like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(like.shape, generator=generator)


def _shape(model: Model, x: Tensor) -> tuple[int, ...]:
    """Return the shape of one image's outputs."""
    with torch.no_grad():
        outputs = forward(model.net, x[:1])
    if not isinstance(outputs, Tensor) or outputs.ndim < 2 or len(outputs) != 1:
        got = tuple(outputs.shape) if isinstance(outputs, Tensor) else f"a {type(outputs).__name__}"
        raise SqError(
            f"{type(model.net).__name__} returns {got} for one image; label-free scores are of a network that returns "
            "one tensor, with a row for each image: logits (images, classes) or raw predictions (images, ...)"
        )
    return tuple(outputs.shape[1:])


def _scores(model: Model, x: Tensor, places: range, vectors: _Vectors) -> dict[str, Tensor]:
    """Return what `activation_scores` does, of images `x` (B, ...) that go together."""
    at: list[Tensor] = []
    calls: list[tuple[str, torch.nn.Module]] = []

    def keep(name: str, module: torch.nn.Module, y: Tensor) -> Tensor:
        at.append(y if y.requires_grad else y.detach().requires_grad_())
        calls.append((name, module))
        return at[-1].clone()  # what goes on may change it in place

    with hooks.returning({layer.name: layer.module for layer in model.layers}, keep):
        outputs = forward(model.net, x)
    sums: list[Tensor] = []
    for number in range(vectors.count):
        product = (vectors.of(number, places).to(outputs) * outputs).sum()
        more = number + 1 < vectors.count
        gradients = torch.autograd.grad(product, at, retain_graph=more, materialize_grads=True)
        means = [
            _by_channel(*own, g.square(), len(x)) for own, g in zip(calls, gradients, strict=True)
        ]
        sums = (
            [total.add_(mean) for total, mean in zip(sums, means, strict=True)] if sums else means
        )
    found: dict[str, Tensor] = {}
    called = {name for name, _ in calls}
    for name in {layer.name for layer in model.layers} - called:  # a router has sent nothing here
        found[name] = torch.zeros(len(x), device=outputs.device)
    for (name, _), total in zip(calls, sums, strict=True):
        largest = total.amax(1) if vectors.exact else total.amax(1) / vectors.draws
        found[name] = torch.maximum(found[name], largest) if name in found else largest
    return found


def _by_channel(name: str, module: torch.nn.Module, y: Tensor, images: int) -> Tensor:
    """Return (images, channels): the mean over space of what a layer returned for so many images."""
    channels = geometry.channels_second(module, y)
    if len(channels) % images:
        raise SqError(
            f"layer {name} returns {tuple(y.shape)} for {images} images, which is not of each on its own"
        )
    return channels.reshape(images, -1, channels.shape[1], channels[0, 0].numel()).mean((1, 3))
