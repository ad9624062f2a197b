"""What all learned quantizers begin and end with: a student, its state on disk, and what the record says of it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from sq.errors import SqError
from sq.learning import input_quantizers
from sq.learning.reconstruction import Learn, check
from sq.learning.session import Session
from sq.learning.student import Start, Student
from sq.learning.target_cache import check_rows
from sq.network.forward import forward
from sq.storage.resume import Resume, checkpoint_location
from sq.types.problem import Problem, QuantizedModel


def ready(problem: Problem, stages: dict[str, Learn | None], parts: list[str]) -> None:
    """See that all can be learned, before anything that takes long.

    Parameters
    ----------
    stages : what is learned, by the name of its setting; None for none
    parts : names of the modules whose outputs are compared, image by image

    Raises
    ------
    SqError : the network returns no tensor; a part of it no rows of each image; see
        `sq.learning.input_quantizers.check` and `sq.learning.reconstruction.check`
    """
    net, x = problem.model.net, problem.batch.x
    with torch.no_grad():
        made = forward(net, x[:1])
    if not isinstance(made, torch.Tensor):
        raise SqError(
            f"{type(net).__name__} returns {type(made).__name__}: learned quantizers take networks that return one "
            "tensor, logits (images, classes) or raw predictions of a detector; choose quantizer=sensiquant"
        )
    input_quantizers.check(problem, _adapts(stages.values()))
    for setting, stage in stages.items():
        if stage is not None:
            check(setting, stage, len(x))
    check_rows(net, parts, x[:2])


def _adapts(stages: Iterable[Learn | None]) -> bool:
    """Tell whether steps of inputs are to adapt to the sample, in any of the stages."""
    return any(getattr(one, "keywords", {}).get("rates", {}).get("adapter") for one in stages)


def begin(
    problem: Problem, start: Start, own: dict[str, Any], stages: list[Any], every: int
) -> Session:
    """Return a session to learn in, as it was left if it was.

    Parameters
    ----------
    own : settings of the method, `seed` and `hold` among them; they and those of its `stages` name
    the state
    every : steps between two writes of the state
    """
    student = Student(problem, start, own["hold"], own["seed"] if _adapts(stages) else None)
    settings = [own, *(getattr(one, "keywords", {}) for one in stages)]
    where = checkpoint_location(problem, settings, student.values)
    return Session(student, Resume(student.values, where), len(problem.batch.x), own["seed"], every)


def finish(session: Session, about: dict[str, Any]) -> QuantizedModel:
    """Return what was learned, with `about` and the curves for the record."""
    resume, spent = session.resume, session.resume.spent
    done = session.student.finish(spent.seconds, spent.cpu + spent.once)
    resume.done()
    moved = [
        layer.report["bias_moved"] for layer in done.layers.values() if layer.report["bias_moved"]
    ]
    weights = sum(layer.codes.numel() for layer in done.layers.values())
    figures = {
        "steps": session.steps,
        "steps_before_interruption": resume.before,
        "cpu_seconds": spent.cpu + spent.once,
        "cpu_seconds_per_step": spent.cpu / max(spent.steps, 1),
        "flipped": sum(layer.report["flipped"] for layer in done.layers.values()) / weights,
        "biases_moved": len(moved),
        "bias_moved": sum(moved) / len(moved) if moved else 0.0,
    }
    betas = input_quantizers.betas(done.net, session.student.problem.batch.x)
    about |= {"betas": betas} if betas else {}
    return QuantizedModel(done.net, done.layers, about | figures | {"curves": resume.rows})
