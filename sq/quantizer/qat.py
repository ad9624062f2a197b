"""LSQ and ASQ: the network is trained on, while it computes with quantized weights and inputs, whose steps it learns.

Beside what `sq.projection` does to weights, ASQ's inputs have a step that adapts to each sample (`sq.adaptive`).
Weights take any grid: on one of levels (POST) this is the published ASQ & POST.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from sq import unfinished
from sq.knobs import Count, Whole
from sq.resume import Resume
from sq.trainee import Trainee
from sq.training import Kept, Wanted
from sq.types import Problem, QuantizedModel

Train = Callable[[Trainee, Wanted, Kept], dict[str, Any]]


def quantize(
    problem: Problem, *, adaptive: bool, images: Whole | None, checkpoint_every: Count, seed: Whole, train: Train
) -> QuantizedModel:
    """Train the network on labelled images of the training split; calibration images only set the grids to start from.

    Parameters
    ----------
    adaptive : the step of each layer's input adapts to the sample (ASQ); otherwise it is one number (LSQ)
    images : of the training split, drawn at random; null takes all
    checkpoint_every : steps between two writes of the state, to be taken up where it was left
    seed : of adapters, images, their order and what is done to them
    train : see `sq.training.train`

    Raises
    ------
    SqError : see `sq.trainee` and `train`

    Source
    ------
    Esser et al. 2020, Learned Step Size Quantization (LSQ), arXiv 1902.08153; Zhou et al. 2025, Precision Neural
    Network Quantization via Learnable Adaptive Modules (ASQ), arXiv 2504.17263. Steps start at the grids fitted to
    weights and calibration images: our reading.
    """
    trainee = Trainee(problem, adaptive, seed)
    settings = [adaptive, images, seed, getattr(train, "keywords", {})]
    values = nn.ModuleList([trainee.net, trainee.quantizers])
    where = unfinished.place(problem, settings, values)
    resume = Resume(values, where, dict(trainee.net.named_buffers()))
    told = train(trainee, Wanted(images, seed), Kept(resume, checkpoint_every))
    done = trainee.finish(resume.spent.seconds.get("network", 0.0))
    resume.done()
    curves = [{"part": "network", **row} for row in told["curves"]]
    report = {"seed": seed, "epochs": len(curves)} | told | {"curves": curves}
    return QuantizedModel(done.net, done.layers, report, trained=True)
