"""Settings that came after the first records: runs from before they were there, and runs that leave them, are one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# Each with the value that says what runs did before it was there. A setting of a family counts where the family does.
SETTINGS: dict[str, Any] = {
    "trials": {"_target_": "sq.trials.none.measure", "_partial_": True},
    "sensitivity.input_bits": [],
    "grid.hessian": {
        "_target_": "sq.scores.weight_scores",
        "_partial_": True,
        "images": 64,
        "draws": 100,
        "tolerance": 0.05,
        "seed": 0,
    },
}


def stripped(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return `config` without those of `SETTINGS` that have that value: its key is then what it was without them."""
    for setting, value in SETTINGS.items():
        family, _, knob = setting.partition(".")
        own = config.get(family)
        if knob and isinstance(own, Mapping) and own.get(knob) == value:
            config = {**config, family: {name: kept for name, kept in own.items() if name != knob}}
        elif not knob and own == value:
            config = {name: kept for name, kept in config.items() if name != family}
    return config


def complete(record: dict[str, Any]) -> None:
    """Give a record of a run from before `SETTINGS` were there the values that say what it did."""
    config, choices = record.get("config"), record.get("choices")
    if not isinstance(config, dict) or not isinstance(choices, dict):
        return  # of a benchmark
    for setting, value in SETTINGS.items():
        family, _, knob = setting.partition(".")
        if not knob:
            config.setdefault(family, value)
            choices.setdefault(family, "none")
        elif isinstance(config.get(family), dict):
            config[family].setdefault(knob, value)
