"""Label-free scores: the effect of a layer's outputs, or of its weights, on the raw outputs.

At a trained network the Hessian of any loss of the outputs f is bounded by J^T J, up to a factor
that all layers share, with J = df/dz. No label is needed (see `sq.sensitivity.label_free`). The
diagonal is an expectation over vectors v with E[v v^T] = I, and also a sum over unit vectors:

    diag(J^T J) = E_v[(J^T v)^2] = sum_k (J^T e_k)^2.

With no more outputs than draws the sum is used: it is exact, and takes fewer passes.
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
from sq.runtime import batching, monte_carlo, out_of_memory
from sq.types.problem import Model


def activation_scores(model: Model, x: Tensor, draws: Draws, seed: Whole) -> dict[str, Tensor]:
    """Return w (B,) float32 by layer name: for each image the largest score of a channel.

    The score of a channel is the mean over space of diag(J^T J), where J is the derivative of the
    raw outputs by the layer's output as it leaves the module. If a layer is called several times in
    a pass, the call of the largest score counts. One backward pass serves all layers.

    Parameters
    ----------
    model : in full precision, in eval mode
    x : images (B, ...)
    draws : random vectors for each image; if an image has no more outputs than that, the score is
        exact instead. The vectors of an image do not depend on the others in its batch
    seed : of the vectors

    Raises
    ------
    SqError : the network returns no tensor with one row for each image, or a layer no such output

    Source
    ------
    Gordon et al. 2023 (EPTQ), arXiv 2309.11531, sample-layer attention: v Rademacher, 100 draws.
    Using unit vectors instead is ours, and so is the rule for several calls.
    """
    probes = _Probes(_output_shape(model, x), draws, seed, monte_carlo.signs)

    def run(size: int) -> dict[str, Tensor]:
        starts = range(0, len(x), size)
        batches = [range(start, min(start + size, len(x))) for start in starts]
        parts: dict[str, list[Tensor]] = {layer.name: [] for layer in model.layers}
        for images in track(batches, "scores"):
            scores = _batch_scores(model, x[images.start : images.stop], images, probes)
            for name, scores_of_layer in parts.items():
                scores_of_layer.append(scores[name])
        return {name: torch.cat(scores_of_layer) for name, scores_of_layer in parts.items()}

    with torch.enable_grad():
        size = max(1, batching.images_per_pass(x.shape[1:], None) // SECOND_ORDER_MEMORY)
        return out_of_memory.fitting("scores", run, size)


def weight_scores(
    model: Model, x: Tensor, *, images: Count, draws: Draws, tolerance: Positive, seed: Whole
) -> tuple[dict[str, Tensor], int]:
    """Return h (G, O, I) by layer name, the mean over images of diag(J^T J), and the draws used.

    J is the derivative of the raw outputs by the layer's weights.

    Parameters
    ----------
    model : in full precision, in eval mode
    x : images (B, ...)
    images : number of images used, the first ones; all, if there are fewer
    draws : random vectors for each image, at most; if an image has no more outputs than that, h is
        exact instead
    tolerance : the draws end when the standard error of the sum of h over each output channel,
        relative to the sum, is below this; such sums choose the range of a channel
    seed : of the vectors

    Raises
    ------
    SqError : the network returns no tensor with one row for each image

    Source
    ------
    Gordon et al. 2023 (EPTQ), arXiv 2309.11531, weights' label-free Hessian (Hmse): v ~ N(0, I), 64
    images, 100 draws. Using unit vectors instead is ours, and so is the rule for stopping.
    """
    x = x[:images]
    probes = _Probes(_output_shape(model, x), draws, seed, _normal)
    weights = {layer.name: original_weight(layer) for layer in model.layers}
    sums = {layer.name: torch.zeros_like(geometry.weight(layer.module)) for layer in model.layers}

    def draw(number: int) -> Tensor:
        """Add draw `number` to `sums`; return its sum over the weights of each output channel."""

        def probes_of(batch: slice) -> Tensor:
            return probes.of(number, range(batch.start, batch.stop)).to(x)

        def product(outputs: Tensor, v: Tensor) -> Tensor:
            return (v * outputs).sum()

        squares = per_sample_gradients.mean_squares(model.net, weights, x, product, probes_of)
        channel_sums = []
        for name, total in sums.items():
            h = squares[name].reshape(total.shape)
            total += h
            channel_sums.append(h.sum(-1).flatten())
        return torch.cat(channel_sums)

    if probes.exact:
        for number in track(range(probes.count), "scores"):
            draw(number)
        return sums, probes.count
    _, _, used = monte_carlo.average(draw, draws, tolerance)
    return {name: total / used for name, total in sums.items()}, used


@dataclass(frozen=True)
class _Probes:
    """The vectors v of each image: all unit vectors if there are at most `draws`, else random ones.

    `shape` is that of one image's outputs. ``draw_one(like, generator)`` draws one such tensor.
    """

    shape: tuple[int, ...]
    draws: int
    seed: int
    draw_one: Callable[[Tensor, torch.Generator], Tensor]

    @property
    def exact(self) -> bool:
        return math.prod(self.shape) <= self.draws

    @property
    def count(self) -> int:
        return min(math.prod(self.shape), self.draws)

    def of(self, number: int, images: range) -> Tensor:
        """Return vector `number` of each of `images`, (images, ...), on the CPU."""
        if self.exact:
            unit = torch.zeros(self.shape)
            unit.view(-1)[number] = 1
            return unit.expand(len(images), *self.shape)
        like = torch.empty(self.shape)
        vectors = []
        for image in images:
            generator = monte_carlo.generator(self.seed, number, image)
            vectors.append(self.draw_one(like, generator))
        return torch.stack(vectors)


def _normal(like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(like.shape, generator=generator)


def _output_shape(model: Model, x: Tensor) -> tuple[int, ...]:
    """Return the shape of one image's outputs."""
    with torch.no_grad():
        outputs = forward(model.net, x[:1])
    if not isinstance(outputs, Tensor) or outputs.ndim < 2 or len(outputs) != 1:
        got = tuple(outputs.shape) if isinstance(outputs, Tensor) else f"a {type(outputs).__name__}"
        raise SqError(
            f"{type(model.net).__name__} returns {got} for one image; label-free scores need a "
            "network that returns one tensor, with a row for each image: logits (images, classes) "
            "or raw predictions (images, ...)"
        )
    return tuple(outputs.shape[1:])


def _batch_scores(model: Model, x: Tensor, images: range, probes: _Probes) -> dict[str, Tensor]:
    """Return the scores of `activation_scores` for one batch `x` (B, ...), of images `images`."""
    layer_outputs: list[Tensor] = []  # of each call
    calls: list[tuple[str, torch.nn.Module]] = []

    def watch(name: str, module: torch.nn.Module, y: Tensor) -> Tensor:
        if not y.requires_grad:
            y = y.detach().requires_grad_()
        layer_outputs.append(y)
        calls.append((name, module))
        return y.clone()  # the network may overwrite it

    with hooks.returning({layer.name: layer.module for layer in model.layers}, watch):
        outputs = forward(model.net, x)
    totals: list[Tensor] = []  # of each call, (B, channels)
    for number in range(probes.count):
        product = (probes.of(number, images).to(outputs) * outputs).sum()
        retain = number + 1 < probes.count
        gradients = torch.autograd.grad(
            product, layer_outputs, retain_graph=retain, materialize_grads=True
        )
        for k, (name, module) in enumerate(calls):
            mean = _by_channel(name, module, gradients[k].square(), len(x))
            if number == 0:
                totals.append(mean)
            else:
                totals[k].add_(mean)
    # A layer that is not called, as an expert without images, has no effect.
    scores = {}
    called = {name for name, _ in calls}
    for layer in model.layers:
        if layer.name not in called:
            scores[layer.name] = torch.zeros(len(x), device=outputs.device)
    for (name, _), total in zip(calls, totals, strict=True):
        largest = total.amax(1) if probes.exact else total.amax(1) / probes.draws
        scores[name] = torch.maximum(scores[name], largest) if name in scores else largest
    return scores


def _by_channel(name: str, module: torch.nn.Module, y: Tensor, images: int) -> Tensor:
    """Return the mean over space of a layer's outputs, (images, channels)."""
    channels = geometry.channels_second(module, y)
    if len(channels) % images:
        raise SqError(
            f"layer {name} returns {tuple(y.shape)} for {images} images: label-free scores need "
            "outputs of each image on its own"
        )
    return channels.reshape(images, -1, channels.shape[1], channels[0, 0].numel()).mean((1, 3))
