"""The loss as a quadratic in the rounding errors of all layers: what a layer costs, and what two cost together.

With f the logits, J = df/dw and S = diag(p) - p p^T the second derivative of cross-entropy by f, the Gauss-Newton
matrix G = J^T S J is the Hessian of the loss but for a term that vanishes where f is linear in the weights (or the
labels are as likely as the network says). Unlike the Hessian it is positive semidefinite. What it is asked for is only
how errors D_i(b) of layer i at b bits look from the logits, u = J D_i(b): one forward-mode pass each, and then

    g . D_i = (p - y) . u_i,    D_i . G D_j = u_i . S u_j = Cov_p(u_i, u_j),

of which all pairs are one matrix product.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import functional as F

from sq import loss, oom
from sq.alone import Change, Runs
from sq.costs import Rows
from sq.derivatives import unfused
from sq.sites import Sites
from sq.types import Layer


class Quadratic:
    """The terms of the quadratic on images `x` (B, C, H, W) with labels `y` (B,); without g . D unless `linear`."""

    def __init__(self, x: Tensor, y: Tensor, linear: bool):
        self.x, self.y, self.linear = x, y, linear
        self.pairs: np.ndarray | None = None  # of the weights, once these have been asked for

    def rows(self, sites: Sites) -> Rows:
        """Return g . D_i + 1/2 D_i . G D_i by layer and bits; keep the products of pairs, if `sites` are weights."""
        linear, products = terms(sites, self.x, self.y)
        if sites.kind == "weights":
            width = len(sites.bits)
            same = np.kron(np.eye(len(sites.layers)), np.ones((width, width))) > 0  # a layer has one width at a time
            self.pairs = np.where(same, 0.0, products.numpy())
        return sites.rows((linear * self.linear + products.diagonal() / 2).tolist())


def terms(sites: Sites, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Return g . D (n,) and D . G D (n, n), float64, means over images, for the n choices of `sites`.

    Parameters
    ----------
    x, y : images (B, C, H, W) and their labels (B,)
    """
    changes = [Change(sites.kind, layer, _tangent(sites, layer, bits)) for layer, bits in sites.choices()]
    runs = Runs(sites.model, changes, x)

    def attempt(size: int) -> tuple[Tensor, Tensor]:
        linear = torch.zeros(len(changes), dtype=torch.float64)
        products = torch.zeros(len(changes), len(changes), dtype=torch.float64)
        moved: list[Tensor] = []
        for seen in runs.each(size, forward_ad.dual_level):
            primal, tangent = forward_ad.unpack_dual(seen.outputs)
            u = torch.zeros_like(primal) if tangent is None else tangent
            loss.check_logits(u)
            p = seen.reference.double().softmax(1)
            residual = p - F.one_hot(y[seen.place], p.shape[1])
            linear[seen.change] += float((residual * u).sum())
            # sqrt(p) times what is left of u without its mean under p: products of two are their covariance.
            moved.append((p.sqrt() * (u - (p * u).sum(1, keepdim=True))).flatten())
            if len(moved) == len(changes):
                every = torch.stack(moved)
                products += (every @ every.T).cpu()
                moved.clear()
        return linear / len(x), products / len(x)

    _load_forward_mode()
    with unfused():
        return oom.fitting("sensitivity", attempt, runs.size)


def _tangent(sites: Sites, layer: Layer, bits: int) -> Callable[[Tensor], Tensor]:
    def put(values: Tensor) -> Tensor:
        primal, tangent = forward_ad.unpack_dual(values)
        error = sites.error(layer, bits, primal)
        return forward_ad.make_dual(primal, error if tangent is None else tangent + error)

    return put


def _load_forward_mode() -> None:
    """Let PyTorch load its rules of forward mode without telling users that it compiles them in an old way."""
    with warnings.catch_warnings(), forward_ad.dual_level():
        warnings.simplefilter("ignore", FutureWarning)
        forward_ad.make_dual(torch.zeros(1), torch.zeros(1))
