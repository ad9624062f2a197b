"""Functions that configs name and that have moved: keys are hashed with their first names.

A record's key is a hash of its config, including `_target_` strings. With the first name of each
function a run keeps its key when the code moves. Records and packed files that have an earlier name
are read with today's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# Each later name of a function with its first one. The last line for a first name has today's. If
# a function moves again, add a line and keep those before it, for configs written meanwhile.
RENAMED: dict[str, str] = {
    "sq.activation.insertion.observe": "sq.activations.observe",
    "sq.activation.insertion.quantize": "sq.activations.quantize",
    "sq.calibration.synthesis.inversion.search": "sq.inversion.search",
    "sq.learning.reconstruction.learn": "sq.reconstruct.learn",
    "sq.hessian.label_free_scores.weight_scores": "sq.scores.weight_scores",
    "sq.training.train.train": "sq.training.train",
}


def original(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy of a config, or a part of one, with the first name of each function."""
    return _renamed(config, RENAMED)


def current(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy of a config, or a part of one, with today's name of each function."""
    latest = {first: later for later, first in RENAMED.items()}
    return _renamed(config, latest | {later: latest[first] for later, first in RENAMED.items()})


def _renamed(value: Any, names: Mapping[str, str]) -> Any:
    """Return `value` with the `_target_` of each mapping in it, at any depth, replaced by `names`.

    Ten thousand records are read at once, so values other than mappings and lists cost no call.
    """
    if isinstance(value, list):
        return [
            _renamed(inner, names) if isinstance(inner, dict | list) else inner for inner in value
        ]
    renamed = {
        key: _renamed(inner, names) if isinstance(inner, dict | list) else inner
        for key, inner in value.items()
    }
    target = value.get("_target_")
    if isinstance(target, str):
        renamed["_target_"] = names.get(target, target)
    return renamed
