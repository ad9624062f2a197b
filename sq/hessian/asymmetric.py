"""Inputs as the quantized network really feeds them: what asymmetric calibration solves for.

With X what full precision feeds a layer and X^ what it is fed once the layers before it (and the
inputs) are quantized, the layer should match W X by Q X^. With H = X^ X^^T and C = X X^^T that is
the ordinary problem for W* = W C H^-1: ||W X - Q X^||^2 = (W* - Q) H (W* - Q)^T + const. So no
solver changes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sq.errors import SqError
from sq.hessian import gram
from sq.hessian.layer_statistics import loss
from sq.network import geometry, hooks
from sq.network.forward import forward
from sq.network.partial_forward import inputs_of
from sq.runtime import batching
from sq.types.problem import Layer


@dataclass(frozen=True)
class Pair:
    """H = 2 X^ X^^T / N and C = 2 X X^^T / N of one layer, both (G, I, I) float64."""

    H: Tensor
    C: Tensor

    def target(self, W: Tensor, damped: Tensor) -> Tensor:
        """Return W* = W + W (C - H) H^-1 (G, O, I), which is W C H^-1, and W itself wherever X^ is X.

        `damped` stands for H in the inverse: W* is then the least of ||W X - V X^||^2 plus the
        damping times
        ||W - V||^2.

        Raises
        ------
        torch.linalg.LinAlgError : `damped` is not positive definite
        """
        wide = W.to(self.H.dtype)
        moved = torch.cholesky_solve(
            torch.bmm(wide, self.C - self.H).mT, torch.linalg.cholesky(damped)
        ).mT
        return (wide + moved).to(W.dtype)

    def relative_error(self, W: Tensor, Q: Tensor, reference: Tensor) -> float:
        """Return ||W X - Q X^||^2 / ||W X||^2, with `reference` = 2 X X^T / N."""
        whole, own = loss(W, reference), loss(Q, self.H)
        mixed = float((torch.bmm(W.to(self.C.dtype), self.C) * Q).sum())
        return max(whole - 2 * mixed + own, 0.0) / whole if whole > 0 else 0.0


def constant_calls(reference: nn.Module, every: Iterable[Layer], x: Tensor) -> dict[str, int]:
    """Return how often each layer is called for a part of images `x` (B, ...), where that is the same for all parts.

    A router, or a loop that goes by the images, may call a layer more often for some: it is left
    out.
    """
    modules = {layer.name: reference.get_submodule(layer.name) for layer in every}
    counts: dict[str, set[int]] = {name: set() for name in modules}
    with torch.no_grad():
        for part in batching.split(x, None):
            called = _calls(reference, modules, part)
            for name, numbers in counts.items():
                numbers.add(called[name])
    return {name: numbers.pop() for name, numbers in counts.items() if len(numbers) == 1}


def _calls(net: nn.Module, modules: dict[str, nn.Module], x: Tensor) -> Counter[str]:
    """Return how often each of `modules` is called in a pass of images `x`."""
    called: Counter[str] = Counter()
    with hooks.feeding(modules, lambda name, module, x: called.update([name])):
        forward(net, x)
    return called


def collect(
    net: nn.Module, reference: nn.Module, layer: Layer, x: Tensor, calls: int | None = None
) -> Pair:
    """Run images `x` (B, ...) through both networks, side by side, and return the pair of `layer`.

    One layer at a time: were two that feed each other solved for the same inputs, both would make
    up for the same error.

    Parameters
    ----------
    calls : of the layer for each part of `x`, see `constant_calls`: after the first part, the
    networks are run only
        until it has been called so often; None runs them to their ends

    Raises
    ------
    SqError : the layer's inputs hold NaN or infinity, or the networks call it differently often
    """
    total = _Sum(layer, x.device)
    with torch.no_grad():
        for number, part in enumerate(batching.split(x, None)):
            last = calls if number else None  # once, both are seen to call it equally often
            wanted = inputs_of(reference, layer.name, part, last)
            found = inputs_of(net, layer.name, part, last)
            if [own.shape for own in wanted] != [own.shape for own in found]:
                raise SqError(
                    f"layer {layer.name} is called differently once layers before it are quantized: use "
                    "calibration.inputs=reference"
                )
            for own in zip(wanted, found, strict=True):
                if own[0].numel():  # a router may call an expert that gets nothing
                    total.add(*own)
    return total.finish()


class _Sum:
    """The running sums of X^ X^^T and X X^^T of one layer."""

    def __init__(self, layer: Layer, device: torch.device):
        shape = (layer.groups, layer.inputs, layer.inputs)
        self.layer, self.positions = layer, 0
        self.H, self.C = (torch.zeros(shape, dtype=torch.float64, device=device) for _ in range(2))

    def add(self, x: Tensor, x_q: Tensor) -> None:
        x, x_q = (geometry.batched(self.layer.module, own) for own in (x, x_q))
        elements = x.numel() * geometry.taps(self.layer.module)
        for part, part_q in zip(gram.pieces(x, elements), gram.pieces(x_q, elements), strict=True):
            X, X_q = (geometry.inputs(self.layer.module, p) for p in (part, part_q))
            gram.add_symmetric(self.H, X_q)
            self.C += torch.bmm(X, X_q.mT)
            self.positions += X.shape[2]

    def finish(self) -> Pair:
        if not self.positions or not (
            torch.isfinite(self.H).all() and torch.isfinite(self.C).all()
        ):
            raise SqError(
                f"the inputs of layer {self.layer.name} hold NaN or infinity: check weights and images"
            )
        return Pair(gram.mirrored(self.H) * (2 / self.positions), self.C * (2 / self.positions))
