"""Trials of the Pareto front: measure every point that the allocation found."""

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
    report : `front` has of each point `bits` (mean of weights), `cost` (predicted), `loss` (nats
        per image) and `top1` (%), in the order of the allocation; `loss_full` and `top1_full` are
        those of full precision

    Raises
    ------
    SqError : the allocation found no front; see `sq.trials.measurement.losses` for others
    """
    if not trial.front:
        raise SqError(
            "trials=front measures a front, and the allocation found none: set allocation=pareto"
        )
    assignments = [(point["widths"], point["inputs"]) for point in trial.front]
    measured = losses(trial, assignments, images)
    points = []
    for point, (loss, top1) in zip(trial.front, measured.assignments, strict=True):
        points.append({"bits": point["bits"], "cost": point["cost"], "loss": loss, "top1": top1})
    loss_full, top1_full = measured.full
    return {
        "images": measured.images,
        "cached": measured.cached,
        "front": points,
        "loss_full": loss_full,
        "top1_full": top1_full,
    }
