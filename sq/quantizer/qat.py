"""LSQ and ASQ: the network is trained on, while it computes with quantized weights and inputs, whose steps it learns.

Beside what `sq.training.weight_projection` does to weights, ASQ's inputs have a step that adapts to
each sample (`sq.learning.adaptive_step`). Weights take any grid: on one of levels (POST) this is
the published ASQ & POST.
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
from sq.training.quantized_network import Trainee
from sq.training.train import Kept, Wanted
from sq.types.problem import Problem, QuantizedModel, digest

Train = Callable[[Trainee, Wanted, Kept], dict[str, Any]]


def quantize(
    problem: Problem,
    *,
    adaptive: Adaptive,
    images: Count | None,
    checkpoint_every: Count,
    seed: Whole,
    train: Train,
) -> QuantizedModel:
    """Train the network on labelled images of the training split; calibration images only set the grids to start from.

    Parameters
    ----------
    adaptive : the step of each layer's input adapts to the sample (ASQ); otherwise it is one number
    (LSQ). "static"
        learns that number as an adapter's bias: the control, see
        `sq.learning.adaptive_step.Adapter`
    images : of the training split, drawn at random; null takes all
    checkpoint_every : steps between two writes of the state, to be taken up where it was left
    seed : of adapters, images, their order and what is done to them
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
    trainee = Trainee(problem, adaptive, seed)
    settings = [adaptive, images, seed, getattr(train, "keywords", {}), _digest(problem)]
    values = nn.ModuleList([trainee.net, trainee.quantizers])
    where = checkpoint_location(problem, settings, values)
    resume = Resume(values, where, dict(trainee.net.named_buffers()))
    told = train(trainee, Wanted(images, seed), Kept(resume, checkpoint_every))
    done = trainee.finish(resume.spent.seconds.get("network", 0.0), resume.spent.cpu)
    resume.done()
    curves = [{"part": "network", **row} for row in told["curves"]]
    betas = input_quantizers.betas(done.net, problem.batch.x)
    report = (
        {"seed": seed, "epochs": len(curves)}
        | told
        | ({"betas": betas} if betas else {})
        | {"curves": curves}
    )
    return QuantizedModel(done.net, done.layers, report, trained=True)


def _check(problem: Problem) -> None:
    """See that the network can be trained on the training split, before anything that takes long."""
    training_feed.check(problem)
    with torch.no_grad():
        made = forward(problem.model.net, problem.batch.x[:1])
    if not isinstance(made, Tensor) or made.ndim != 2:
        raise SqError(
            f"{type(problem.model.net).__name__} returns no logits (images, classes): lsq and asq train classifiers; "
            "choose quantizer=eptq"
        )
    assert problem.train is not None
    assert isinstance(problem.train.y, Tensor)
    if (most := int(problem.train.y.max())) >= made.shape[1]:
        raise SqError(
            f"the training images have a class {most}, the network has {made.shape[1]}: choose its dataset"
        )


def _digest(problem: Problem) -> str:
    """Return a hash of the training images' ids and labels."""
    assert problem.train is not None
    assert isinstance(problem.train.y, Tensor)
    ids = hashlib.sha256("\n".join(problem.train.ids).encode()).hexdigest()
    return f"{ids} {digest([problem.train.y])}"
