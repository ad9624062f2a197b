"""Reconstruction: learn roundings, scales and biases so that outputs match full precision.

One loop serves every method. The method chooses the part (layer, block, network), the loss and the
learning rates.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from sq.config.constraints import Count, Ends, NotNegative, Portion, Whole
from sq.core.progress import track
from sq.errors import SqError
from sq.learning import schedules
from sq.learning.learning_run import LearningRun, Part
from sq.learning.optimizer_step import Rates, StageOptimizer, StageSettings
from sq.learning.schedules import PrecisionSchedule
from sq.learning.student import Precision
from sq.runtime.monte_carlo import seeded

CURVE_POINTS = 100  # of one stage, at most

Learn = Callable[[LearningRun, Part], None]


def check(name: str, stage: Learn, images: int) -> None:
    """Check that a stage can be learned: `stage` is `learn` with its settings, `name` its setting.

    Raises
    ------
    SqError : there are fewer images than a batch, or nothing that a step could learn
    """
    knobs: Mapping[str, Any] = getattr(stage, "keywords", {})
    batch = knobs["batch"]
    if batch > images:
        fact = (
            f"{images} calibration images are fewer than a batch of {batch}: set "
            f"quantizer.{name}.batch={images} or less"
        )
        raise SqError(
            f"{fact}, or calibration.images={batch} or more",
            call=f"{fact}, or give {batch} images or more",
        )
    learned = {kind for kind, rate in knobs["rates"].items() if rate}
    only_inputs = bool(learned) and learned <= {"input", "adapter"}
    full_precision = knobs["keep"] == "fixed" and knobs["share"] == 1
    if knobs["iterations"] and only_inputs and full_precision:
        raise SqError(
            f"quantizer.{name}: with keep=fixed share=1 inputs stay in full precision, and only "
            f"their scales are to be learned: set quantizer.{name}.share below 1, or a rate of "
            "rounding, bias or scale"
        )


def learn(  # noqa: PLR0913 (all but two are knobs, each a line of YAML)
    run: LearningRun,
    part: Part,
    *,
    iterations: Whole,
    batch: Count,
    forward: Literal["soft", "hard"],
    optimizer: Literal["adam", "radam"],
    rates: Rates,
    weight: NotNegative,
    warm_up: Portion,
    early: bool,
    beta: Ends,
    keep: PrecisionSchedule,
    share: Portion,
    precision: Precision,
) -> None:
    """Learn the quantization of one part of a network.

    Parameters
    ----------
    run : changed in place; its student's network is not
    iterations : steps; 0 changes nothing
    batch : images in one step, no more than there are (see `check`). They are shuffled again when
        all were used
    forward : "soft" computes with roundings between 0 and 1, as published. "hard" computes with 0
        and 1 and the gradient of soft ones (straight-through): the loss is that of the final codes,
        so a few steps suffice. All rates then fall to 0 as a cosine, or codes would flip to and fro
        until the end. Roundings without a rate are fixed
    optimizer : of the roundings; everything else uses Adam
    rates : of each kind of parameter; those of inputs and adapters fall to 0 as a cosine. Factors
        of scales stay above 0
    weight : of the regulariser that makes roundings hard; only for soft roundings
    warm_up : share of the steps in which the regulariser's exponent stays at its first value
    early : the regulariser counts during the warm-up too (EPTQ); AdaRound and BRECQ leave it out
    beta : first and last value of the exponent
    keep, share : how much of layer inputs stays in full precision, see
        `sq.learning.schedules.full_precision_share`
    precision : of the student's passes, by autocast; losses, gradients of learned values and
        targets are float32

    Raises
    ------
    SqError : a loss or a gradient is NaN or infinite; step and term are named, and the last good
        state is saved
    """
    stage = run.stages
    run.stages += 1
    run.start_clock()
    settings = StageSettings(forward, optimizer, rates, keep, share, precision)
    stage_optimizer = StageOptimizer(run, part, stage, settings)
    if not stage_optimizer.learned:  # inputs in full precision have no scale to learn
        iterations = 0
    resumed_at = run.resume.begin(stage, stage_optimizer.optimizers)
    first = iterations if resumed_at is None else resumed_at
    counted = first  # steps whose time is in the record
    for step in track(range(first, iterations), part.name, iterations):
        t = step / max(iterations - 1, 1)
        index = _batch_index(run, stage, step, batch)
        exponent = schedules.beta(t, beta[0], beta[1], warm_up)
        pressure = weight if early or t >= warm_up else 0.0
        terms = stage_optimizer.step(step, t, index, exponent, pressure)
        if step % max(1, iterations // CURVE_POINTS) == 0 or step == iterations - 1:
            point = stage_optimizer.curve_point(step, terms)
            run.resume.rows.append({"part": part.name, **point, "beta": exponent})
        if (step + 1) % run.save_every == 0:
            run.count_time(part.layers, step + 1 - counted)
            counted = step + 1
            run.resume.save(stage, step + 1, stage_optimizer.optimizers)
    stage_optimizer.report_floored_scales()
    run.steps += iterations
    run.count_time(part.layers, iterations - counted)


def _batch_index(run: LearningRun, stage: int, step: int, batch: int) -> Tensor:
    """Return the numbers (batch,) of the images of one step: each once before any is used again."""
    steps_per_order = run.images // batch  # images beyond full batches wait for the next order
    order_number, position = divmod(step, steps_per_order)
    generator = seeded(run.seed, stage, -1 - order_number)
    order = torch.randperm(run.images, generator=generator)
    return order[position * batch :][:batch]
