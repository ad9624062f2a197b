"""The front: every point that the allocation found between bits and cost, measured."""

from __future__ import annotations

from typing import Any

from sq.config.constraints import Count
from sq.errors import SqError
from sq.trials.measurement import Trial, losses


def measure(trial: Trial, *, images: Count) -> dict[str, Any]:
    """Measure loss and accuracy at each point of the front that allocation=pareto found.

    Parameters
    ----------
    images : of the evaluation split, at most; see `sq.trials.measurement.losses`

    Returns
    -------
    `front`: of each point `bits` (mean of weights), `cost` (predicted), `loss` (nats an image) and
    `top1` (%), in the order of the allocation's; `loss_full` and `top1_full` are those of full
    precision

    Raises
    ------
    SqError : the allocation found no front; see `sq.trials.measurement.losses` for others
    """
    if not trial.front:
        raise SqError(
            "trials=front measures a front, and the allocation found none: set allocation=pareto"
        )
    found = losses(trial, [(point["widths"], point["inputs"]) for point in trial.front], images)
    points = [
        {"bits": point["bits"], "cost": point["cost"], "loss": loss, "top1": top1}
        for point, (loss, top1) in zip(trial.front, found.mixes, strict=True)
    ]
    full = dict(zip(("loss_full", "top1_full"), found.full, strict=True))
    return {"images": found.images, "cached": found.cached, "front": points} | full
