"""Asymmetric calibration: statistics of the inputs that the quantized network gives a layer.

X are the inputs of a layer in full precision, and X^ its inputs after the layers before it (and
their activations) are quantized. Q X^ should match W X. With H = X^ X^^T and C = X X^^T that is the
ordinary problem for W* = W C H^-1: ||W X - Q X^||^2 = (W* - Q) H (W* - Q)^T + const. So every
solver can be used as it is.
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
        """Return W* = W + W (C - H) H^-1 (G, O, I), which is W C H^-1, and W where X^ is X.

        `damped` replaces H in the inverse. W* then minimises ||W X - V X^||^2 plus the damping
        times ||W - V||^2 over V.

        Raises
        ------
        torch.linalg.LinAlgError : `damped` is not positive definite
        """
        W_double = W.to(self.H.dtype)
        difference = torch.bmm(W_double, self.C - self.H)
        L = torch.linalg.cholesky(damped)
        correction = torch.cholesky_solve(difference.mT, L).mT
        return (W_double + correction).to(W.dtype)

    def relative_error(self, W: Tensor, Q: Tensor, reference: Tensor) -> float:
        """Return ||W X - Q X^||^2 / ||W X||^2, with `reference` = 2 X X^T / N."""
        size = loss(W, reference)  # ||W X||^2
        quantized_size = loss(Q, self.H)  # ||Q X^||^2
        product = float((torch.bmm(W.to(self.C.dtype), self.C) * Q).sum())  # <W X, Q X^>
        if not size > 0:
            return 0.0
        return max(size - 2 * product + quantized_size, 0.0) / size


def constant_calls(reference: nn.Module, layers: Iterable[Layer], x: Tensor) -> dict[str, int]:
    """Return how often each layer is called in a pass, if that is the same for all batches of `x`.

    A router, or a loop that depends on the images, may call a layer more often for some images.
    Such layers are left out.
    """
    modules = {layer.name: reference.get_submodule(layer.name) for layer in layers}
    counts: dict[str, set[int]] = {name: set() for name in modules}
    with torch.no_grad():
        for batch in batching.split(x, None):
            calls = _calls(reference, modules, batch)
            for name in modules:
                counts[name].add(calls[name])
    constant = {}
    for name, numbers in counts.items():
        if len(numbers) == 1:
            constant[name] = numbers.pop()
    return constant


def _calls(net: nn.Module, modules: dict[str, nn.Module], x: Tensor) -> Counter[str]:
    """Return how often each of `modules` is called in a pass of images `x`."""
    calls: Counter[str] = Counter()
    with hooks.feeding(modules, lambda name, module, x: calls.update([name])):
        forward(net, x)
    return calls


def collect(
    net: nn.Module, reference: nn.Module, layer: Layer, x: Tensor, calls: int | None = None
) -> Pair:
    """Run images `x` (B, ...) through both networks by batches and return the pair of `layer`.

    It is for one layer at a time: if two consecutive layers were solved for the same inputs, both
    would compensate the same error.

    Parameters
    ----------
    net : the quantized network
    reference : the network in full precision
    calls : how often each batch calls the layer, see `constant_calls`. After the first batch the
        networks run only until that many calls; None runs them to the end

    Raises
    ------
    SqError : the layer's inputs hold NaN or infinity, or the networks do not call it equally often
    """
    sums = _Sums(layer, x.device)
    with torch.no_grad():
        for number, batch in enumerate(batching.split(x, None)):
            # The first batch runs to the end, to check that both networks call the layer alike.
            stop_after = calls if number else None
            inputs = inputs_of(reference, layer.name, batch, stop_after)
            inputs_q = inputs_of(net, layer.name, batch, stop_after)
            if [X.shape for X in inputs] != [X.shape for X in inputs_q]:
                raise SqError(
                    f"layer {layer.name} is called differently once layers before it are "
                    "quantized: use calibration.inputs=reference"
                )
            for X, X_q in zip(inputs, inputs_q, strict=True):
                if X.numel():  # a router may call an expert without inputs
                    sums.add(X, X_q)
    return sums.finish()


class _Sums:
    """The running sums of X^ X^^T and X X^^T of one layer."""

    def __init__(self, layer: Layer, device: torch.device):
        shape = (layer.groups, layer.inputs, layer.inputs)
        self.layer, self.positions = layer, 0
        self.H = torch.zeros(shape, dtype=torch.float64, device=device)
        self.C = torch.zeros(shape, dtype=torch.float64, device=device)

    def add(self, x: Tensor, x_q: Tensor) -> None:
        module = self.layer.module
        x, x_q = geometry.batched(module, x), geometry.batched(module, x_q)
        unfolded = x.numel() * geometry.taps(module)
        pieces, pieces_q = gram.pieces(x, unfolded), gram.pieces(x_q, unfolded)
        for piece, piece_q in zip(pieces, pieces_q, strict=True):
            X, X_q = geometry.inputs(module, piece), geometry.inputs(module, piece_q)  # (G, I, N)
            gram.add_symmetric(self.H, X_q)
            self.C += torch.bmm(X, X_q.mT)
            self.positions += X.shape[2]

    def finish(self) -> Pair:
        finite = torch.isfinite(self.H).all() and torch.isfinite(self.C).all()
        if not self.positions or not finite:
            raise SqError(
                f"the inputs of layer {self.layer.name} hold NaN or infinity: "
                "check weights and images"
            )
        return Pair(gram.mirrored(self.H) * (2 / self.positions), self.C * (2 / self.positions))
