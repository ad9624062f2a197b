"""How rounding moves a network's answers: what a layer costs, and what two layers cost together.

With f the logits and u_i(b) = f with layer i at b bits, less f, answers at temperature T move by

    KL(softmax(f / T) || softmax((f + sum_i u_i) / T)) = 1/2 sum_ij u_i . S u_j / T^2 + ...,   S =
    diag(p) - p p^T

with p = softmax(f / T): a sum over layers, and over pairs of them; being one of squares, it is
never below 0. u is measured, by one forward pass each, so that no derivative has to hold over the
long way from full precision to two bits; all pairs are one matrix product then.

A trained network is sure of the images it was trained on, and S vanishes where p is 0 or 1: at T =
1 most images say nothing, and a few say it all. A higher temperature lets all of them speak.
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


class Answers:
    """The terms of the quadratic on images `x` (B, C, H, W) at `temperature` > 0."""

    def __init__(self, x: Tensor, temperature: float):
        self.x, self.temperature = x, temperature
        # u_i . S u_j / T^2 of the weights, once these have been asked for
        self.gram: np.ndarray | None = None
        self.pairs: np.ndarray | None = None  # the same, 0 within a layer

    def rows(self, sites: Sites) -> Rows:
        """Return 1/2 u_i . S u_i / T^2 by layer and bits; keep the products of pairs, if `sites` are weights."""
        found = products(sites, self.x, self.temperature)
        if sites.kind == "weights":
            owner = np.array([layer.name for layer, _ in sites.choices()])
            same = owner[:, None] == owner  # a layer has one width at a time
            self.gram = found.numpy()
            self.pairs = np.where(same, 0.0, self.gram)
        return sites.rows((found.diagonal() / 2).tolist())


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
    changes = single_layer_changes.rounding(sites)
    runs = single_layer_changes.Runs(sites.model, changes, x)

    def attempt(size: int) -> Tensor:
        total = torch.zeros(len(changes), len(changes), dtype=torch.float64)
        moved: list[Tensor] = []
        for seen in runs.each(size):
            losses.check_logits(seen.outputs)
            reference = seen.reference.double() / temperature
            u = seen.outputs.double() / temperature - reference
            p = reference.softmax(1)
            # sqrt(p) times what is left of u without its mean under p: products of two are their
            # covariance.
            moved.append((p.sqrt() * (u - (p * u).sum(1, keepdim=True))).flatten())
            if len(moved) == len(changes):
                every = torch.stack(moved)
                total += (every @ every.T).cpu()
                moved.clear()
        return mirrored(total) / len(x)

    return out_of_memory.fitting("sensitivity", attempt, runs.size)
