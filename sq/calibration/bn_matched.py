"""BN-matched: unlabelled images on which what BatchNorm layers are fed looks as in training (ZeroQ)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from sq.calibration.synthesis import image_request
from sq.calibration.synthesis.image_request import Request
from sq.config.constraints import Count
from sq.network import batchnorm_statistics
from sq.storage.store import NOWHERE, Store
from sq.types.images import Calibration, Dataset
from sq.types.problem import Model


def draw(
    model: Model,
    dataset: Dataset,
    store: Store = NOWHERE,
    *,
    images: Count,
    seed: int,
    inputs: Literal["reference", "quantized"],
    search: Callable[..., Tensor],
) -> Calibration:
    """Make images that give BatchNorm layers inputs of the mean and variance they had in training, and no data.

    Classifiers and detectors alike; the images have no labels.

    Parameters
    ----------
    dataset : left alone
    store : keeps the images for other runs
    images : how many
    seed : of what images begin as, and of how they are moved meanwhile
    inputs : handed on, see `sq.types.images.Calibration`
    search : how images are looked for, `sq.calibration.synthesis.inversion.search`

    Raises
    ------
    SqError : the network has no BatchNorm layers

    Source
    ------
    Cai et al. 2020, ZeroQ, arXiv 2001.00281, its distilled data. There distances are those of
    single images; here those of a batch, in units of the running statistics
    (`sq.network.batchnorm_statistics.distance`), which leaves images free to differ. Its term for the
    network's input is what images begin as.
    """
    batchnorm_statistics.require(model.net, "calibration=bn_matched")
    unlabelled = torch.full((images,), -1)
    return image_request.deliver(
        model, Request("bn_matched", unlabelled, seed, inputs, Matched(model.net)), search, store
    )


@dataclass(frozen=True)
class Matched:
    """Images that match the statistics of BatchNorm layers."""

    net: nn.Module

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the distance of images x (B, C, H, W)."""
        return batchnorm_statistics.forward_with_distance(self.net, x)[1]

    def accepted(self, x: Tensor, y: Tensor) -> Tensor:
        """Return (B,) True: images of a batch are what they are together."""
        return torch.ones(len(x), dtype=torch.bool, device=x.device)

    def figures(self, x: Tensor, y: Tensor) -> dict[str, float]:
        """Return the distance."""
        return {"bn_distance": float(batchnorm_statistics.forward_with_distance(self.net, x)[1])}
