"""Functions that configs name and that have moved since: their first names stay in keys, records and packed files.

A record's key is a hash of its config, `_target_` strings included. It is hashed with the first
name of each function, so that a run keeps its key when the code moves; and what was written with an
earlier name is read with today's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# Each later name of a function with its first one. The last line for a first name has today's:
# where a function moves again, add a line and leave those before it, for configs that were written
# meanwhile.
RENAMED: dict[str, str] = {
    "sq.activation.insertion.observe": "sq.activations.observe",
    "sq.activation.insertion.quantize": "sq.activations.quantize",
    "sq.calibration.synthesis.inversion.search": "sq.inversion.search",
    "sq.learning.reconstruction.learn": "sq.reconstruct.learn",
    "sq.hessian.label_free_scores.weight_scores": "sq.scores.weight_scores",
    "sq.training.train.train": "sq.training.train",
}


def original(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy of `config`, or a part of one, with the first name of each function."""
    return _renamed(config, RENAMED)


def current(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy of `config`, or a part of one, with today's name of each function."""
    latest = {first: later for later, first in RENAMED.items()}
    return _renamed(config, latest | {later: latest[first] for later, first in RENAMED.items()})


def _renamed(value: Any, names: Mapping[str, str]) -> Any:
    """Return `value` with `names` put in for the `_target_` of every mapping in it, at any depth.

    Ten thousand records are read at once: what is neither mapping nor list costs no call.
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
