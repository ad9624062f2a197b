"""Calibration statistics: H = 2 X X^T / N of each layer, collected in one pass over the images."""

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

# When only a share of the positions is drawn: an H of fewer is mostly noise.
MIN_POSITIONS_PER_INPUT = 4


def collect(
    model: Model, batch: Batch, *, batch_size: int | None, positions: float, seed: int
) -> Statistics:
    """Run the calibration images through the network once and accumulate each layer's Hessian.

    Products are float32, sums over chunks float64. Memory is bounded: a layer's inputs are unfolded
    a few images at a time. The calls of a module that is called several times are added up.

    Parameters
    ----------
    batch : the calibration images
    batch_size : images in one forward pass, None for what suits their size; changes speed and
        memory, not results (beyond rounding)
    positions : share of each layer's positions used, drawn at random, in (0, 1]; 1 uses all. A
        layer that would have fewer than `MIN_POSITIONS_PER_INPUT` uses all. For a module called
        several times the draw depends on `batch_size`
    seed : of that draw, together with the layer's name

    Raises
    ------
    SqError : an image, or a layer's input, holds NaN or infinity; the Hessians do not fit in memory
    """
    if not torch.isfinite(batch.x).all():
        bad_ids = []
        for image_id, x in zip(batch.ids, batch.x, strict=True):
            if not torch.isfinite(x).all():
                bad_ids.append(image_id)
        raise SqError(
            f"calibration images hold NaN or infinity: {', '.join(bad_ids[:3])}; "
            "remove or repair them"
        )
    memory.check(model.layers, batch.x.device)
    if positions < 1:  # the draw may depend on the batches: they must not get smaller
        return _run(model, batch, batch_size, positions, seed)

    def run(size: int) -> Statistics:
        return _run(model, batch, size, positions, seed)

    size = batching.images_per_pass(batch.x.shape[1:], batch_size)
    return out_of_memory.fitting("statistics", run, size)


def _run(
    model: Model, batch: Batch, batch_size: int | None, positions: float, seed: int
) -> Statistics:
    sums: dict[str, _GramSum] = {}
    handles = []
    for layer in model.layers:
        total = sums[layer.name] = _GramSum(layer, len(batch.ids), positions, seed)
        hook = partial(_observe, total)
        handles.append(layer.module.register_forward_hook(hook, with_kwargs=True))
    try:
        with torch.no_grad():
            for images in track(batching.split(batch.x, batch_size), "statistics"):
                forward(model.net, images)
    finally:
        for handle in handles:
            handle.remove()
    return Statistics({name: total.finish() for name, total in sums.items()}, len(batch.ids))


class _GramSum:
    """The running sum of X X^T of one layer."""

    def __init__(self, layer: Layer, images: int, share: float, seed: int):
        self.layer, self.images, self.share, self.seed = layer, images, share, seed
        self.gram: gram.Gram | None = None
        self.positions = self.used = 0

    def add(self, x: Tensor, positions: int) -> None:
        if not positions:  # a router has sent no inputs here
            return
        if self.gram is None:
            self.gram = self._accumulator(x, positions)
        self.used += self.gram.add(x, positions)
        self.positions += positions

    def _accumulator(self, x: Tensor, positions: int) -> gram.Gram:
        """Return the accumulator that suits the first inputs `x`."""
        hashed = hashlib.sha256(f"{self.seed} {self.layer.name}".encode()).digest()
        expected = self.share * positions * self.images / len(x)  # positions drawn from all images
        enough = expected >= MIN_POSITIONS_PER_INPUT * self.layer.inputs
        share = self.share if enough else 1.0
        return gram.choose(self.layer, x, share, int.from_bytes(hashed[:7], "big"))

    def finish(self) -> LayerStatistics:
        name = self.layer.name
        if self.gram is None:
            raise SqError(f"layer {name} was never called on the calibration images")
        total = self.gram.finish()
        self.gram = None  # frees the sum before the next layer's result is allocated
        if not torch.isfinite(total).all():
            raise SqError(
                f"the inputs of layer {name} hold NaN or infinity: check weights and images"
            )
        return LayerStatistics(total.mul_(2 / self.used), self.positions)


def _observe(
    total: _GramSum,
    module: nn.Module,
    args: tuple[Tensor, ...],
    named: dict[str, Tensor],
    output: Tensor,
) -> None:
    x = hooks.first_argument(args, named).detach()  # a forward may turn gradients on
    total.add(geometry.batched(module, x), geometry.positions(module, output))


def loss(error: Tensor, hessian: Tensor) -> float:
    """Return tr(E H E^T) over all groups.

    For E = W - Q this is twice the squared output error, summed over outputs and averaged over
    positions.

    Parameters
    ----------
    error : E, (G, O, I)
    hessian : (G, I, I) float64
    """
    E = error.to(hessian.dtype)
    return float((torch.bmm(E, hessian) * E).sum())


def relative_error(W: Tensor, Q: Tensor, hessian: Tensor) -> float:
    """Return ||(W - Q) X||^2 / ||W X||^2, and 0 for a layer whose outputs are all 0."""
    reference = loss(W, hessian)
    return loss(W - Q, hessian) / reference if reference > 0 else 0.0
