"""BN-matched: unlabelled images that match the statistics of BatchNorm layers (ZeroQ)."""

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
    """Generate images for which the inputs of BatchNorm layers have the statistics of training.

    No data is used. It works for classifiers and detectors; the images have no labels.

    Parameters
    ----------
    dataset : not used
    store : keeps the images for other runs
    images : number of images
    seed : of the initial images, and of their random shifts and flips
    inputs : passed on, see `sq.types.images.Calibration`
    search : generates the images, `sq.calibration.synthesis.inversion.search`

    Raises
    ------
    SqError : the network has no BatchNorm layers

    Source
    ------
    Cai et al. 2020, ZeroQ, arXiv 2001.00281, its distilled data. The paper matches each image; here
    a batch is matched, with distances in units of the running statistics
    (`sq.network.batchnorm_statistics.distance`), so that its images can differ. In place of the
    paper's term for the network's input, the initial images have suitable statistics.
    """
    batchnorm_statistics.require(model.net, "calibration=bn_matched")
    unlabelled = torch.full((images,), -1)
    request = Request("bn_matched", unlabelled, seed, inputs, Matched(model.net))
    return image_request.deliver(model, request, search, store)


@dataclass(frozen=True)
class Matched:
    """The objective of matching the statistics of BatchNorm layers."""

    net: nn.Module

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the distance for images x (B, C, H, W)."""
        return batchnorm_statistics.forward_with_distance(self.net, x)[1]

    def accepted(self, x: Tensor, y: Tensor) -> Tensor:
        """Return True for all, (B,): only a batch as a whole has statistics."""
        return torch.ones(len(x), dtype=torch.bool, device=x.device)

    def figures(self, x: Tensor, y: Tensor) -> dict[str, float]:
        """Return the distance."""
        return {"bn_distance": float(batchnorm_statistics.forward_with_distance(self.net, x)[1])}
