"""Generated: labelled images that the network alone makes, whatever operations it is built of."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from annotated_types import Interval
from torch import Tensor, nn
from torch.nn import functional as F

from sq.calibration.synthesis import image_request
from sq.calibration.synthesis.image_request import Request
from sq.config.constraints import Count, NotNegative
from sq.errors import SqError
from sq.network import batchnorm_statistics
from sq.network.forward import forward
from sq.runtime import batching
from sq.storage.store import NOWHERE, Store
from sq.types.images import Calibration, Dataset
from sq.types.problem import Model

Confidence = Annotated[float, Interval(gt=0, lt=1)]


def draw(
    model: Model,
    dataset: Dataset,
    store: Store = NOWHERE,
    *,
    images: Count,
    seed: int,
    inputs: Literal["reference", "quantized"],
    search: Callable[..., Tensor],
    confidence: Confidence,
    tv: NotNegative,
    l2: NotNegative,
    bn_weight: NotNegative,
) -> Calibration:
    """Make images that the network takes for given classes, all classes equally often, and no data.

    Of each image x with label y, of p(y) the network's probability of it, small is made

        |log-odds of p(y) - log-odds of confidence| + tv * TV(x) + l2 * mean(x^2) + bn_weight *
        BatchNorm distance

    The first term holds the cross-entropy, -log p(y), at a level that images of data have instead
    of 0: where p(y) is near 1, the gradients vanish that metrics of sensitivity live on. They would
    vanish here as well, and leave images there once they are; those of log-odds, log p / (1 - p),
    do not. Without `bn_weight` no operation is relied on.

    Parameters
    ----------
    dataset : left alone
    store : keeps the images for other runs
    images : how many
    seed : of labels, of what images begin as, and of how they are moved meanwhile
    inputs : handed on, see `sq.types.images.Calibration`
    search : how images are looked for, `sq.calibration.synthesis.inversion.search`
    confidence : probability that the network is to give to the label of each image
    tv : weight of the total variation, mean |difference| of neighbours, of values as the network
    takes them
    l2 : weight of their mean square
    bn_weight : weight of `sq.network.batchnorm_statistics.distance`, for each image of a batch;
        above 0 the network needs BatchNorm layers

    Raises
    ------
    SqError : the network is a detector or no classifier; or it has no BatchNorm layers, and
    `bn_weight` asks for them

    Source
    ------
    Lee et al. 2021, arXiv 2103.10051. **Our reading**: only the abstract was available, which has
    labelled images generated without relying on particular operations; the loss is ours. With
    `bn_weight`, Yin et al. 2020 (DeepInversion, arXiv 1912.08795).
    """
    device = next(model.net.parameters()).device
    with torch.no_grad():
        outputs = forward(model.net, batching.to_device(torch.zeros(1, *model.input), device))
    if model.decode is not None or outputs.ndim != 2 or outputs.shape[1] < 2:
        raise SqError(
            "calibration=generated makes images of given classes, which only a classifier has: choose "
            "calibration=bn_matched, or calibration=subset"
        )
    if bn_weight:
        batchnorm_statistics.require(model.net, "calibration.bn_weight")
    y = balanced(images, outputs.shape[1], torch.Generator().manual_seed(seed))
    weights = {"confidence": confidence, "tv": tv, "l2": l2, "bn_weight": bn_weight}
    request = Request("generated", y, seed, inputs, Labelled(model.net, **weights), weights)
    return image_request.deliver(model, request, search, store)


@dataclass(frozen=True)
class Labelled:
    """Images of given classes; see `draw` for the loss and its weights."""

    net: nn.Module
    confidence: float
    tv: float
    l2: float
    bn_weight: float

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the loss of images x (B, C, H, W) with labels y (B,), summed over images."""
        logits, distance = (
            batchnorm_statistics.forward_with_distance(self.net, x)
            if self.bn_weight
            else (forward(self.net, x), None)
        )
        loss = (log_odds(logits, y) - math.log(self.confidence / (1 - self.confidence))).abs()
        if self.tv:
            loss = loss + self.tv * total_variation(x)
        if self.l2:
            loss = loss + self.l2 * x.square().flatten(1).mean(1)
        return loss.sum() if distance is None else loss.sum() + self.bn_weight * len(x) * distance

    def accepted(self, x: Tensor, y: Tensor) -> Tensor:
        """Return (B,) bool: of which images the label is the likeliest."""
        return forward(self.net, x).argmax(1) == y

    def figures(self, x: Tensor, y: Tensor) -> dict[str, float]:
        """Return the mean cross-entropy, the mean probability of the label, and the share of images it is top of."""
        logits = forward(self.net, x)
        return {
            "loss": float(F.cross_entropy(logits, y)),
            "confidence": float(logits.softmax(1).gather(1, y[:, None]).mean()),
            "agreement": float((logits.argmax(1) == y).double().mean()),
        }


def balanced(images: int, classes: int, random: torch.Generator) -> Tensor:
    """Return (images,) labels: every class in turn, each turn in an order of its own."""
    turns = [torch.randperm(classes, generator=random) for _ in range(-(-images // classes))]
    return torch.cat(turns)[:images]


def log_odds(logits: Tensor, y: Tensor) -> Tensor:
    """Return (B,): log p / (1 - p), where p is the probability of label y (B,) by logits (B, K)."""
    others = logits.scatter(1, y[:, None], -math.inf)
    return logits.gather(1, y[:, None])[:, 0] - others.logsumexp(1)


def total_variation(x: Tensor) -> Tensor:
    """Return (B,): the mean |difference| of vertical neighbours in images x (B, C, H, W), and that of horizontal ones.

    Source
    ------
    Rudin, Osher, Fatemi 1992; the anisotropic form.
    """
    down, across = x.diff(dim=2), x.diff(dim=3)
    return down.abs().flatten(1).mean(1) + across.abs().flatten(1).mean(1)
