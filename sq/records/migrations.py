"""Defaults of settings added after the first records, so that old records keep their keys."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from sq.config import renamed_targets

# Each setting with the value that describes what runs did before it existed. Functions have their
# first names, since keys hash those. A setting of a part applies to configs that have the part.
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
    "model.reparameterize": True,  # no network of an earlier run can be reparameterized
}
# Settings that only some choices of their part have, with the functions that take them.
TAKEN_BY = {
    "export.unsigned": ("sq.export.onnx.write",),
    "model.reparameterize": ("sq.model.timm.load", "sq.model.checkpoint.load"),
}


def stripped(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return `config` without `SETTINGS` at those values: its key is then that of an old record."""
    for setting, value in SETTINGS.items():
        config = _without(config, setting.split("."), value)
    return config


def _without(part: Mapping[str, Any], path: list[str], value: Any) -> Mapping[str, Any]:
    """Return `part` without the setting at `path` if that has `value`."""
    name, *rest = path
    setting = part.get(name)
    if rest:
        if not isinstance(setting, Mapping):
            return part
        return {**part, name: _without(setting, rest, value)}
    if setting != value:
        return part
    return {other: part[other] for other in part if other != name}


def complete(record: dict[str, Any]) -> None:
    """Give an old record the values of `SETTINGS` that it lacks, and today's names of functions."""
    config, choices = record.get("config"), record.get("choices")
    if not isinstance(config, dict) or not isinstance(choices, dict):
        return  # the record of a benchmark
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
    """Tell whether `part` names a function that takes `setting`."""
    if setting not in TAKEN_BY:
        return True
    target = str(part.get("_target_"))
    return renamed_targets.RENAMED.get(target, target) in TAKEN_BY[setting]
