"""How rounding moves a network's logits: the cost of a layer, and of two layers together.

With f the logits, and u_i(b) the logits with layer i at b bits less f, predictions at temperature T
move by

    KL(softmax(f / T) || softmax((f + sum_i u_i) / T)) = 1/2 sum_ij u_i . S u_j / T^2 + ...

with S = diag(p) - p p^T and p = softmax(f / T). That is a sum over layers, and over pairs of them.
S is positive semidefinite, so the sum is never below 0. Each u is measured by one forward pass, so
no derivative has to hold over the long way from full precision to two bits. All pairs are one
matrix product then.

A trained network is sure of the images it was trained on, and S vanishes where p is 0 or 1. At T =
1 most images contribute nothing, and a few dominate. At a higher temperature all of them count.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from sq.hessian.gram import mirrored
from sq.network import single_layer_changes
from sq.network.rounding_sites import Sites
from sq.runtime import out_of_memory
from sq.sensitivity import losses
from sq.types.costs import Rows


class LogitCurvature:
    """The terms of the quadratic on images `x` (B, C, H, W) at `temperature` > 0."""

    def __init__(self, x: Tensor, temperature: float):
        self.x = x
        self.temperature = temperature
        # (n, n) u_i . S u_j / T^2 of the n choices of weights, once `rows` has scored these
        self.gram: np.ndarray | None = None
        # the same, but 0 within a layer, which has one width at a time
        self.pairs: np.ndarray | None = None

    def rows(self, sites: Sites) -> Rows:
        """Return 1/2 u_i . S u_i / T^2 by layer and bits; of weights, store `gram` and `pairs`."""
        gram = products(sites, self.x, self.temperature)
        if sites.kind == "weights":
            names = np.array([layer.name for layer, _ in sites.choices()])
            same_layer = names[:, None] == names
            self.gram = gram.numpy()
            self.pairs = np.where(same_layer, 0.0, self.gram)
        return sites.rows((gram.diagonal() / 2).tolist())


def products(sites: Sites, x: Tensor, temperature: float) -> Tensor:
    """Return u . S u / T^2 (n, n), float64, the mean over images, for the n choices of `sites`.

    Parameters
    ----------
    x : images (B, C, H, W)
    temperature : that logits are divided by, > 0

    Raises
    ------
    SqError : the network returns no logits
    """
    changes = single_layer_changes.rounding_changes(sites)
    passes = single_layer_changes.ChangePasses(sites.model, changes, x)

    def attempt(size: int) -> Tensor:
        total = torch.zeros(len(changes), len(changes), dtype=torch.float64)
        factors: list[Tensor] = []  # of one batch, for each change
        for result in passes.each(size):
            losses.check_logits(result.outputs)
            reference = result.reference.double() / temperature
            u = result.outputs.double() / temperature - reference  # (B, K)
            p = reference.softmax(1)
            # u . S v is the covariance of u and v under p, so it is the product of the factors
            # sqrt(p) (u - mean of u under p).
            factor = p.sqrt() * (u - (p * u).sum(1, keepdim=True))
            factors.append(factor.flatten())
            if len(factors) == len(changes):
                stacked = torch.stack(factors)
                total += (stacked @ stacked.T).cpu()
                factors.clear()
        return mirrored(total) / len(x)

    return out_of_memory.fitting("sensitivity", attempt, passes.size)
