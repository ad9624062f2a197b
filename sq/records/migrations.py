"""Settings that came after the first records: runs from before they were there, and runs that leave them, are one."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from sq.config import renamed_targets

# Each with the value that says what runs did before it was there, functions by their first names,
# which keys hash. A setting of a part counts where the part is.
SETTINGS: dict[str, Any] = {
    "trials": {"_target_": "sq.trials.none.measure", "_partial_": True},
    "export": {"_target_": "sq.export.none.write", "_partial_": True},
    "latency": {"_target_": "sq.latency.none.measure", "_partial_": True},
    "sensitivity.input_bits": [],
    "grid.hessian": {
        "_target_": "sq.scores.weight_scores",
        "_partial_": True,
        "images": 64,
        "draws": 100,
        "tolerance": 0.05,
        "seed": 0,
    },
    "quantizer.learn.precision": "float32",
    "quantizer.then.precision": "float32",
    "quantizer.learn.rates.adapter": 0.0,
    "quantizer.then.rates.adapter": 0.0,
    "quantizer.train.crop": None,
    "export.unsigned": False,
    "model.reparameterize": True,  # no network of a run from before offers it
}
# Settings that not every choice of their part has, with the functions that have them.
TAKEN_BY = {
    "export.unsigned": ("sq.export.onnx.write",),
    "model.reparameterize": ("sq.model.timm.load", "sq.model.checkpoint.load"),
}


def stripped(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return `config` without those of `SETTINGS` that have that value: its key is then what it was without them."""
    for setting, value in SETTINGS.items():
        config = _without(config, setting.split("."), value)
    return config


def _without(part: Mapping[str, Any], path: list[str], value: Any) -> Mapping[str, Any]:
    first, *rest = path
    own = part.get(first)
    if rest:
        return {**part, first: _without(own, rest, value)} if isinstance(own, Mapping) else part
    return {name: kept for name, kept in part.items() if name != first} if own == value else part


def complete(record: dict[str, Any]) -> None:
    """Give a record the values of `SETTINGS` that say what a run from before they were there did, and today's names."""
    config, choices = record.get("config"), record.get("choices")
    if not isinstance(config, dict) or not isinstance(choices, dict):
        return  # of a benchmark
    for setting, value in SETTINGS.items():
        *path, knob = setting.split(".")
        part: Any = config
        for name in path:
            part = part.get(name) if isinstance(part, dict) else None
        if isinstance(part, dict) and _takes(part, setting):
            part.setdefault(knob, copy.deepcopy(value))
        if not path:
            choices.setdefault(knob, "none")
    record["config"] = renamed_targets.current(config)


def _takes(part: dict[str, Any], setting: str) -> bool:
    """Return whether `part` names a function that has `setting`."""
    target = str(part.get("_target_"))
    return (
        setting not in TAKEN_BY or renamed_targets.RENAMED.get(target, target) in TAKEN_BY[setting]
    )
