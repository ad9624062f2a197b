"""LSQ and ASQ: train the network on with quantized weights and inputs, and learn their steps.

Weights are trained by `sq.training.weight_projection`. With ASQ, the steps of inputs adapt to each
sample (`sq.learning.adaptive_step`). Weights take any grid: on one of levels (POST) this is the
published ASQ & POST.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from sq.config.constraints import Count, Whole
from sq.dataset import training_feed
from sq.errors import SqError
from sq.learning import input_quantizers
from sq.learning.adaptive_step import Adaptive
from sq.network.forward import forward
from sq.storage.resume import Resume, checkpoint_location
from sq.training.quantized_network import QuantizedNetwork
from sq.training.train import Checkpoints, TrainingImages
from sq.types.problem import Problem, QuantizedModel, digest

Train = Callable[[QuantizedNetwork, TrainingImages, Checkpoints], dict[str, Any]]


def quantize(
    problem: Problem,
    *,
    adaptive: Adaptive,
    images: Count | None,
    checkpoint_every: Count,
    seed: Whole,
    train: Train,
) -> QuantizedModel:
    """Train the network on labelled images of the training split.

    Calibration images only set the grids that training starts from.

    Parameters
    ----------
    adaptive : the step of each layer's input adapts to the sample (ASQ), or is one number (LSQ).
        "static" learns that number as the bias of an adapter: the control experiment, see
        `sq.learning.adaptive_step.Adapter`
    images : of the training split, drawn at random; null takes all
    checkpoint_every : steps between two saved states, from which an interrupted run is resumed
    seed : of adapters, and of the choice, order and augmentation of images
    train : see `sq.training.train.train`

    Raises
    ------
    SqError : see `sq.training.quantized_network` and `train`

    Source
    ------
    Esser et al. 2020, Learned Step Size Quantization (LSQ), arXiv 1902.08153; Zhou et al. 2025,
    Precision Neural Network Quantization via Learnable Adaptive Modules (ASQ), arXiv 2504.17263.
    Steps start at the grids fitted to weights and calibration images: our reading.
    """
    _check(problem)
    network = QuantizedNetwork(problem, adaptive, seed)
    settings = [adaptive, images, seed, getattr(train, "keywords", {}), _digest(problem)]
    values = nn.ModuleList([network.net, network.quantizers])
    location = checkpoint_location(problem, settings, values)
    resume = Resume(values, location, dict(network.net.named_buffers()))
    results = train(network, TrainingImages(images, seed), Checkpoints(resume, checkpoint_every))
    seconds = resume.spent.seconds.get("network", 0.0)
    quantized = network.finish(seconds, resume.spent.cpu)
    resume.done()
    curves = [{"part": "network", **row} for row in results["curves"]]
    report: dict[str, Any] = {"seed": seed, "epochs": len(curves)} | results
    betas = input_quantizers.beta_statistics(quantized.net, problem.batch.x)
    if betas:
        report["betas"] = betas
    report["curves"] = curves
    return QuantizedModel(quantized.net, quantized.layers, report, trained=True)


def _check(problem: Problem) -> None:
    """Check that the network can be trained on the training split, before any long work."""
    training_feed.check(problem)
    with torch.no_grad():
        logits = forward(problem.model.net, problem.batch.x[:1])
    if not isinstance(logits, Tensor) or logits.ndim != 2:
        raise SqError(
            f"{type(problem.model.net).__name__} returns no logits (images, classes): lsq and asq "
            "train classifiers; choose quantizer=eptq"
        )
    assert problem.train is not None
    assert isinstance(problem.train.y, Tensor)
    largest = int(problem.train.y.max())
    if largest >= logits.shape[1]:
        raise SqError(
            f"the training images have a class {largest}, the network has {logits.shape[1]}: "
            "choose its dataset"
        )


def _digest(problem: Problem) -> str:
    """Return a hash of the training images' ids and labels."""
    assert problem.train is not None
    assert isinstance(problem.train.y, Tensor)
    ids = hashlib.sha256("\n".join(problem.train.ids).encode()).hexdigest()
    return f"{ids} {digest([problem.train.y])}"
