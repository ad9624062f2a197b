"""Start and end of all learned quantizers: checks, the student, its saved state, and the record."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from sq.errors import SqError
from sq.learning import input_quantizers
from sq.learning.learning_run import LearningRun
from sq.learning.reconstruction import Learn, check
from sq.learning.student import Start, Student
from sq.learning.target_cache import check_rows
from sq.network.forward import forward
from sq.storage.resume import Resume, checkpoint_location
from sq.types.problem import Problem, QuantizedModel


def check_learnable(problem: Problem, stages: dict[str, Learn | None], parts: list[str]) -> None:
    """Check that everything can be learned, before any long work.

    Parameters
    ----------
    stages : what is learned, by the name of its setting; None for nothing
    parts : names of the modules whose outputs are compared, image by image

    Raises
    ------
    SqError : the network returns no tensor, or a part returns no separate rows for each image; see
        `sq.learning.input_quantizers.check` and `sq.learning.reconstruction.check`
    """
    net, x = problem.model.net, problem.batch.x
    with torch.no_grad():
        outputs = forward(net, x[:1])
    if not isinstance(outputs, torch.Tensor):
        raise SqError(
            f"{type(net).__name__} returns {type(outputs).__name__}: learned quantizers take "
            "networks that return one tensor, logits (images, classes) or raw predictions of a "
            "detector; choose quantizer=sensiquant"
        )
    input_quantizers.check(problem, _uses_adapters(stages.values()))
    for setting, stage in stages.items():
        if stage is not None:
            check(setting, stage, len(x))
    check_rows(net, parts, x[:2])


def _uses_adapters(stages: Iterable[Learn | None]) -> bool:
    """Tell whether input steps adapt to the sample in any of the stages."""
    return any(_knobs(stage).get("rates", {}).get("adapter") for stage in stages)


def _knobs(stage: Learn | None) -> dict[str, Any]:
    """Return the settings of a stage, which is a `functools.partial` of `learn`."""
    return getattr(stage, "keywords", {})


def begin(
    problem: Problem,
    start: Start,
    settings: dict[str, Any],
    stages: list[Learn | None],
    save_every: int,
) -> LearningRun:
    """Return a run of learning, resumed from its saved state if there is one.

    Parameters
    ----------
    settings : of the method, `seed` and `hold` among them. They and the settings of `stages` name
        the saved state
    save_every : steps between two saved states
    """
    adapter_seed = settings["seed"] if _uses_adapters(stages) else None
    student = Student(problem, start, settings["hold"], adapter_seed)
    all_settings = [settings, *(_knobs(stage) for stage in stages)]
    location = checkpoint_location(problem, all_settings, student.values)
    resume = Resume(student.values, location)
    return LearningRun(student, resume, len(problem.batch.x), settings["seed"], save_every)


def finish(run: LearningRun, report: dict[str, Any]) -> QuantizedModel:
    """Return what was learned; its report is `report` with figures and curves added."""
    resume, spent = run.resume, run.resume.spent
    cpu_seconds = spent.cpu + spent.once
    quantized = run.student.finish(spent.seconds, cpu_seconds)
    resume.done()
    reports = [layer.report for layer in quantized.layers.values()]
    bias_changes = [entry["bias_moved"] for entry in reports if entry["bias_moved"]]
    weights = sum(layer.codes.numel() for layer in quantized.layers.values())
    betas = input_quantizers.beta_statistics(quantized.net, run.student.problem.batch.x)
    if betas:
        report = report | {"betas": betas}
    report = report | {
        "steps": run.steps,
        "steps_before_interruption": resume.before,
        "cpu_seconds": cpu_seconds,
        "cpu_seconds_per_step": spent.cpu / max(spent.steps, 1),
        "flipped": sum(entry["flipped"] for entry in reports) / weights,
        "biases_moved": len(bias_changes),
        "bias_moved": sum(bias_changes) / len(bias_changes) if bias_changes else 0.0,
        "curves": resume.rows,
    }
    return QuantizedModel(quantized.net, quantized.layers, report)
