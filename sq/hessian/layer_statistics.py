"""What calibration leaves of each layer: H = 2 X X^T / N in one pass, images forgotten."""

from __future__ import annotations

import hashlib
from functools import partial

import torch
from torch import Tensor, nn

from sq.core.progress import track
from sq.errors import SqError
from sq.hessian import gram
from sq.network import geometry, hooks
from sq.network.forward import forward
from sq.runtime import batching, memory, out_of_memory
from sq.types.images import Batch
from sq.types.problem import Layer, LayerStatistics, Model, Statistics

LEAST = 4  # positions an input, when only some are drawn: an H of fewer is mostly noise


def collect(
    model: Model, batch: Batch, *, batch_size: int | None, positions: float, seed: int
) -> Statistics:
    """Run the calibration images through the network once and accumulate every layer's Hessian.

    Products are float32, sums over chunks float64. Memory is bounded: a layer's inputs are unfolded
    a few images at a time. A module called several times in one pass adds up all its calls.

    Parameters
    ----------
    batch : the calibration images
    batch_size : images in one forward pass, None for what suits their size; changes speed and
    memory, not results
        (beyond rounding)
    positions : share of each layer's positions used, drawn at random, in (0, 1]; 1 uses all. A
    layer that would
        be left with fewer than `LEAST` an input keeps all. What a module called several times draws
        depends on `batch_size`
    seed : of that draw, together with the layer's name

    Raises
    ------
    SqError : an image, or a layer's input, holds NaN or infinity; the Hessians do not fit in memory
    """
    if not torch.isfinite(batch.x).all():
        bad = [i for i, x in zip(batch.ids, batch.x, strict=True) if not torch.isfinite(x).all()]
        raise SqError(
            f"calibration images hold NaN or infinity: {', '.join(bad[:3])}; remove or repair them"
        )
    memory.check(model.layers, batch.x.device)
    if positions < 1:  # what is drawn may depend on the batches
        return _pass(model, batch, batch_size, positions, seed)
    size = batching.images_per_pass(batch.x.shape[1:], batch_size)
    return out_of_memory.fitting(
        "statistics", lambda some: _pass(model, batch, some, positions, seed), size
    )


def _pass(
    model: Model, batch: Batch, batch_size: int | None, positions: float, seed: int
) -> Statistics:
    sums = {layer.name: _Sum(layer, len(batch.ids), positions, seed) for layer in model.layers}
    hooks = [
        layer.module.register_forward_hook(partial(_observe, sums[layer.name]), with_kwargs=True)
        for layer in model.layers
    ]
    try:
        with torch.no_grad():
            for chunk in track(batching.split(batch.x, batch_size), "statistics"):
                forward(model.net, chunk)
    finally:
        for hook in hooks:
            hook.remove()
    return Statistics({name: s.finish() for name, s in sums.items()}, len(batch.ids))


class _Sum:
    """The running sum of X X^T of one layer."""

    def __init__(self, layer: Layer, images: int, share: float, seed: int):
        self.layer, self.images, self.share, self.seed = layer, images, share, seed
        self.gram: gram.Gram | None = None
        self.positions = self.used = 0

    def add(self, x: Tensor, positions: int) -> None:
        if not positions:  # a router has sent nothing here
            return
        if self.gram is None:  # the first inputs decide which way is faster
            own = hashlib.sha256(f"{self.seed} {self.layer.name}".encode()).digest()
            expected = self.share * positions * self.images / len(x)
            share = self.share if expected >= LEAST * self.layer.inputs else 1.0
            self.gram = gram.of(self.layer, x, share, int.from_bytes(own[:7], "big"))
        self.used += self.gram.add(x, positions)
        self.positions += positions

    def finish(self) -> LayerStatistics:
        name = self.layer.name
        if self.gram is None:
            raise SqError(f"layer {name} was never called on the calibration images")
        total = self.gram.finish()
        self.gram = None  # of all layers' sums and results, one sum is held twice at a time
        if not torch.isfinite(total).all():
            raise SqError(
                f"the inputs of layer {name} hold NaN or infinity: check weights and images"
            )
        return LayerStatistics(total.mul_(2 / self.used), self.positions)


def _observe(
    total: _Sum,
    module: nn.Module,
    args: tuple[Tensor, ...],
    named: dict[str, Tensor],
    output: Tensor,
) -> None:
    x = hooks.first_argument(args, named).detach()  # a forward may turn gradients on
    total.add(geometry.batched(module, x), geometry.positions(module, output))


def loss(error: Tensor, hessian: Tensor) -> float:
    """Return tr(E H E^T) over all groups: for E = W - Q, the mean squared output error, times 2 and outputs.

    Parameters
    ----------
    error : (G, O, I)
    hessian : (G, I, I) float64
    """
    wide = error.to(hessian.dtype)
    return float((torch.bmm(wide, hessian) * wide).sum())


def relative_error(W: Tensor, Q: Tensor, hessian: Tensor) -> float:
    """Return ||(W - Q) X||^2 / ||W X||^2, 0 for a layer that outputs nothing anyway."""
    reference = loss(W, hessian)
    return loss(W - Q, hessian) / reference if reference > 0 else 0.0
