"""Reconstruction: roundings, scales and biases learned so that a part of a network returns what it did.

One loop serves every method, which says what part (layer, block, network), what is compared, and at
which rates.
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
from sq.learning.optimizer_step import Descent, How, Rates
from sq.learning.schedules import Keep
from sq.learning.session import Part, Session
from sq.learning.student import Precision
from sq.runtime.monte_carlo import seeded

POINTS = 100  # of the curves of one stage, at most

Learn = Callable[[Session, Part], None]


def check(name: str, stage: Learn, images: int) -> None:
    """See that a stage can be learned, before anything is: `stage` is `learn` with its knobs, `name` is its setting's.

    Raises
    ------
    SqError : fewer images than a batch, or nothing that a step could learn
    """
    knobs: Mapping[str, Any] = getattr(stage, "keywords", {})
    if knobs["batch"] > images:
        fact = (
            f"{images} calibration images are fewer than a batch of {knobs['batch']}: set quantizer.{name}.batch="
            f"{images} or less"
        )
        raise SqError(
            f"{fact}, or calibration.images={knobs['batch']} or more",
            call=f"{fact}, or give {knobs['batch']} images or more",
        )
    learned = [kind for kind, rate in knobs["rates"].items() if rate]
    if (
        knobs["iterations"]
        and learned
        and set(learned) <= {"input", "adapter"}
        and (knobs["keep"], knobs["share"]) == ("fixed", 1)
    ):
        raise SqError(
            f"quantizer.{name}: with keep=fixed share=1 inputs stay in full precision, and only their scales are to be "
            f"learned: set quantizer.{name}.share below 1, or a rate of rounding, bias or scale"
        )


def learn(  # noqa: PLR0913 (all but two are knobs, each a line of YAML)
    session: Session,
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
    keep: Keep,
    share: Portion,
    precision: Precision,
) -> None:
    """Learn the quantization of one part of a network.

    Parameters
    ----------
    session : changed in place; its student's network is not
    iterations : steps; 0 leaves all as it is
    batch : images in one step, no more than there are (see `check`), in an order drawn anew each
    time all were used
    forward : roundings in between 0 and 1 ("soft", as published), or 0 and 1 with gradients as if
    in between ("hard",
        straight-through: what is seen is what comes out, so that few steps suffice; all rates fall
        to 0 as a cosine then, or codes would flip to and fro to the end); without a rate they are
        fixed
    optimizer : of the roundings; all else takes Adam
    rates : of each kind of what is learned; those of inputs and adapters fall to 0 as a cosine.
    Factors of scales
        stay above 0
    weight : of the regulariser that makes roundings hard; it counts where roundings are soft
    warm_up : share of the steps in which the regulariser's exponent stays at its first value
    early : the regulariser counts in the warm-up too (EPTQ); AdaRound and BRECQ leave it out
    beta : the exponent at first and at last
    keep, share : how much of what layers are fed stays in full precision, see
    `sq.learning.schedules.kept`
    precision : of the student's passes, by autocast; losses, gradients of what is learned and
    targets are in float32

    Raises
    ------
    SqError : a loss or a gradient that is NaN or infinite: the step and the term are named, and the
    last good state is
        kept
    """
    stage, session.stages = session.stages, session.stages + 1
    session.start()
    run = Descent(session, part, stage, How(forward, optimizer, rates, keep, share, precision))
    iterations = iterations if run.learned else 0  # inputs in full precision have no scale to learn
    first = session.resume.begin(stage, run.optimizers)
    counted = first = iterations if first is None else first
    for step in track(range(first, iterations), part.name, iterations):
        t = step / max(iterations - 1, 1)
        index = _order(session, stage, step, batch)
        exponent = schedules.beta(t, beta[0], beta[1], warm_up)
        pressure = weight if early or t >= warm_up else 0.0
        about = run.step(step, t, index, exponent, pressure)
        if step % max(1, iterations // POINTS) == 0 or step == iterations - 1:
            session.resume.rows.append(
                {"part": part.name, **run.point(step, about), "beta": exponent}
            )
        if (step + 1) % session.every == 0:
            session.count(part.layers, step + 1 - counted)
            counted = step + 1
            session.resume.save(stage, step + 1, run.optimizers)
    run.tell_floored()
    session.steps += iterations
    session.count(part.layers, iterations - counted)


def _order(session: Session, stage: int, step: int, batch: int) -> Tensor:
    """Return the numbers (batch,) of the images of one step: each once before any is taken again."""
    every = session.images // batch  # steps in one order; what is left over waits for another
    order = torch.randperm(
        session.images, generator=seeded(session.seed, stage, -1 - step // every)
    )
    return order[step % every * batch :][:batch]
