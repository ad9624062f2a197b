"""Generated: labelled images made from a classifier alone, whatever its operations are."""

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
    """Generate images that the network classifies as given labels, all classes equally often.

    No data is used. For an image x with label y, and p(y) its probability by the network, the loss
    is

        |log-odds of p(y) - log-odds of confidence| + tv * TV(x) + l2 * mean(x^2)
        + bn_weight * BatchNorm distance

    The first term keeps the cross-entropy, -log p(y), at the level of real images, above 0: where
    p(y) is near 1, the gradients that sensitivity metrics need vanish. In the loss itself the
    log-odds, log p / (1 - p), are used because their gradient does not vanish there. With
    `bn_weight` 0 the loss does not rely on any operation of the network.

    Parameters
    ----------
    dataset : not used
    store : keeps the images for other runs
    images : number of images
    seed : of the labels, of the initial images, and of their random shifts and flips
    inputs : passed on, see `sq.types.images.Calibration`
    search : generates the images, `sq.calibration.synthesis.inversion.search`
    confidence : target probability of the label of each image
    tv : weight of the total variation (mean |difference| of neighbours) of the network's inputs
    l2 : weight of their mean square
    bn_weight : weight of `sq.network.batchnorm_statistics.distance`, for each image of a batch;
        above 0 the network needs BatchNorm layers

    Raises
    ------
    SqError : the network is not a classifier; or `bn_weight` is set and it has no BatchNorm layers

    Source
    ------
    Lee et al. 2021, arXiv 2103.10051. **Our reading**: only the abstract was available, which says
    that labelled images are generated without relying on particular operations; the loss is ours.
    With `bn_weight`, Yin et al. 2020 (DeepInversion, arXiv 1912.08795).
    """
    device = next(model.net.parameters()).device
    with torch.no_grad():
        outputs = forward(model.net, batching.to_device(torch.zeros(1, *model.input), device))
    if model.decode is not None or outputs.ndim != 2 or outputs.shape[1] < 2:
        raise SqError(
            "calibration=generated needs a classifier, since it generates images of given classes; "
            "choose calibration=bn_matched, or calibration=subset"
        )
    if bn_weight:
        batchnorm_statistics.require(model.net, "calibration.bn_weight")
    y = balanced(images, outputs.shape[1], torch.Generator().manual_seed(seed))
    weights = {"confidence": confidence, "tv": tv, "l2": l2, "bn_weight": bn_weight}
    request = Request("generated", y, seed, inputs, Labelled(model.net, **weights), weights)
    return image_request.deliver(model, request, search, store)


@dataclass(frozen=True)
class Labelled:
    """The objective of images of given classes; see `draw` for the loss and its weights."""

    net: nn.Module
    confidence: float
    tv: float
    l2: float
    bn_weight: float

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the loss of images x (B, C, H, W) with labels y (B,), summed over images."""
        distance = None
        if self.bn_weight:
            logits, distance = batchnorm_statistics.forward_with_distance(self.net, x)
        else:
            logits = forward(self.net, x)
        target = math.log(self.confidence / (1 - self.confidence))
        # Absolute, since a probability above the target is as unwanted as one below.
        loss = (log_odds(logits, y) - target).abs()  # (B,)
        if self.tv:
            loss = loss + self.tv * total_variation(x)
        if self.l2:
            loss = loss + self.l2 * x.square().flatten(1).mean(1)
        total = loss.sum()
        if distance is not None:
            # The distance is one number for the batch, the other terms are sums over images.
            total = total + self.bn_weight * len(x) * distance
        return total

    def accepted(self, x: Tensor, y: Tensor) -> Tensor:
        """Return (B,) bool: whether the label of each image is the most likely class."""
        return forward(self.net, x).argmax(1) == y

    def figures(self, x: Tensor, y: Tensor) -> dict[str, float]:
        """Return mean cross-entropy, mean probability of the label, and the top-1 accuracy."""
        logits = forward(self.net, x)
        return {
            "loss": float(F.cross_entropy(logits, y)),
            "confidence": float(logits.softmax(1).gather(1, y[:, None]).mean()),
            "agreement": float((logits.argmax(1) == y).double().mean()),
        }


def balanced(images: int, classes: int, random: torch.Generator) -> Tensor:
    """Return labels (images,): one random permutation of the classes after another."""
    count = -(-images // classes)
    permutations = [torch.randperm(classes, generator=random) for _ in range(count)]
    return torch.cat(permutations)[:images]


def log_odds(logits: Tensor, y: Tensor) -> Tensor:
    """Return log p / (1 - p), (B,), where p is the probability of label y (B,) by logits (B, K)."""
    # p / (1 - p) = exp(logit of y) / sum of exp(other logits)
    others = logits.scatter(1, y[:, None], -math.inf)
    return logits.gather(1, y[:, None])[:, 0] - others.logsumexp(1)


def total_variation(x: Tensor) -> Tensor:
    """Return the total variation (B,) of images x (B, C, H, W).

    It is the mean |difference| of vertical neighbours plus that of horizontal ones.

    Source
    ------
    Rudin, Osher, Fatemi 1992; the anisotropic form.
    """
    down, across = x.diff(dim=2), x.diff(dim=3)
    return down.abs().flatten(1).mean(1) + across.abs().flatten(1).mean(1)
