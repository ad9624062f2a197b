"""Where the state of something that learns is kept: under a name by all that its result follows from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import nn

from sq.storage import code_hash, store
from sq.storage.resume import Place
from sq.types.problem import Problem, digest


def place(problem: Problem, settings: list[Any], values: nn.Module) -> Place | None:
    """Return the place of a state, None if none is to be kept.

    It goes by code, network, calibration images, what is there at the start, settings and machine.

    Parameters
    ----------
    settings : of what learns
    values : as they are before the first step
    """
    if problem.scratch is None:
        return None
    words = json.dumps(settings, sort_keys=True, default=repr)
    code, state = store.describe(problem.model)
    begun, images = digest(values.state_dict().values()), digest([problem.batch.x])
    name = store.name(
        [
            code_hash.digest(),
            *code,
            *state,
            words,
            begun,
            images,
            store.place(problem.batch.x.device),
        ]
    )
    return Place(Path(problem.scratch), name, int(problem.scratch_gib * store.GIB))
