"""What calibration leaves of each layer: H = 2 X X^T / N in one pass, images forgotten."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from sq import layers
from sq.console import track
from sq.errors import SqError
from sq.types import Layer, LayerStatistics, Model, Split, Statistics

UNFOLDED = 2**24  # elements of unfolded input at a time: 64 MiB in float32


def collect(model: Model, batch: Split, *, batch_size: int) -> Statistics:
    """Run the calibration images through the network once and accumulate every layer's Hessian.

    Products are float32, sums over chunks float64. Memory is bounded: a layer's inputs are unfolded a few
    images at a time. A module called several times in one pass adds up all its calls.

    Parameters
    ----------
    batch : the calibration images
    batch_size : images in one forward pass; changes speed and memory, not results (beyond rounding)

    Raises
    ------
    SqError : an image, or a layer's input, holds NaN or infinity
    """
    if not torch.isfinite(batch.x).all():
        bad = [i for i, x in zip(batch.ids, batch.x, strict=True) if not torch.isfinite(x).all()]
        raise SqError(f"calibration images hold NaN or infinity: {', '.join(bad[:3])}; remove or repair them")
    sums = {layer.name: _Sum(layer, batch.x.device) for layer in model.layers}
    hooks = [
        layer.module.register_forward_hook(partial(_observe, sums[layer.name]), with_kwargs=True)
        for layer in model.layers
    ]
    try:
        with torch.no_grad():
            for chunk in track(batch.x.split(batch_size), "statistics", -(-len(batch.x) // batch_size)):
                model.net(chunk)
    finally:
        for hook in hooks:
            hook.remove()
    return Statistics({name: s.finish() for name, s in sums.items()}, len(batch.ids))


class _Sum:
    """The running sum of X X^T of one layer."""

    def __init__(self, layer: Layer, device: torch.device):
        self.layer = layer
        self.total = torch.zeros(layer.groups, layer.inputs, layer.inputs, dtype=torch.float64, device=device)
        self.positions = 0

    def add(self, x: Tensor, positions: int) -> None:
        elements = self.layer.groups * self.layer.inputs * positions  # of the unfolded input
        pieces = min(len(x), -(-elements // UNFOLDED))
        seen = 0
        for part in x.chunk(pieces):
            X = layers.inputs(self.layer.module, part)
            seen += X.shape[2]
            self.total += torch.bmm(X, X.transpose(1, 2))
        assert seen == positions, f"layer {self.layer.name}: {seen} columns of inputs, {positions} outputs"
        self.positions += positions

    def finish(self) -> LayerStatistics:
        if self.positions == 0:
            raise SqError(f"layer {self.layer.name} was never called on the calibration images")
        if not torch.isfinite(self.total).all():
            raise SqError(f"the inputs of layer {self.layer.name} hold NaN or infinity: check weights and images")
        return LayerStatistics(self.total * (2 / self.positions), self.positions)


def _observe(
    total: _Sum, module: nn.Module, args: tuple[Tensor, ...], named: dict[str, Tensor], output: Tensor
) -> None:
    total.add(args[0] if args else named["input"], layers.positions(module, output))


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
