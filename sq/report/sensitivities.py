"""Sensitivity of layers to their bits: a table for each network and metric, seeds averaged."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

from sq.config.schema import leaves
from sq.records.record import Record, canonical
from sq.report.labels import SEEDS

if TYPE_CHECKING:
    import pandas

# Parts of the config that shape a sensitivity, beside the statistics: weights, how they are
# rounded, and which metric is computed.
PARTS = ("model", "fold", "ends", "grid", "sensitivity")
# How calibration images came to be, drawn or synthesized; not which of them were taken.
IMAGES = "calibration._target_"


def origin(record: Record) -> str:
    """Return all that the sensitivities of a finished run depend on, as text."""
    inputs = [record["choices"]["model"], record["statistics"], _settings(record)]
    return json.dumps(inputs, sort_keys=True)


def tables(records: list[Record]) -> dict[str, pandas.DataFrame]:
    """Return each layer's cost at each bit-width, averaged over distinct statistics.

    Returns
    -------
    by name, a table with a row a layer and a column a bit-width. The name is that of the model,
    and those settings in which its runs differ: ``resnet20 range=mse``. Sensitivities of inputs
    have a table of the same name with ``inputs`` after it
    """
    import pandas

    runs_by_model: dict[str, dict[str, Record]] = {}  # one run for each origin
    for record in records:
        if record["status"] == "done" and "sensitivity" in record:
            runs = runs_by_model.setdefault(record["choices"]["model"], {})
            runs.setdefault(origin(record), record)
    frames: dict[str, list[pandas.DataFrame]] = {}
    for model, runs in runs_by_model.items():
        suffixes = _distinguishing_settings(list(map(_settings, runs.values())))
        for record, suffix in zip(runs.values(), suffixes, strict=True):
            weights = record["sensitivity"]
            inputs = record.get("cost", {}).get("inputs")
            for costs, kind in ((weights, []), (inputs, ["inputs"])):
                if costs:
                    name = " ".join([model, *suffix, *kind])
                    frames.setdefault(name, []).append(pandas.DataFrame(costs).T)
    return {name: _mean(tables_of_name) for name, tables_of_name in frames.items()}


def stem(name: str) -> str:
    """Return what the files of the table `name` are called."""
    return "sensitivity_" + re.sub(r"[^\w.+-]+", "_", name)


def _settings(record: Record) -> dict[str, Any]:
    """Return the settings that shape sensitivities, by dotted name.

    The accuracy that a network is expected to reach is none of them.
    """
    parts = {name: canonical(record["config"].get(name)) for name in PARTS}
    settings = leaves(parts)
    settings[IMAGES] = (record["config"].get("calibration") or {}).get("_target_")
    for name in [*settings]:
        if name.startswith("model.expected") or name in SEEDS:
            del settings[name]
    return settings


def _distinguishing_settings(runs: list[dict[str, Any]]) -> list[list[str]]:
    """Return, for the settings of each run, those that tell it from the others, as text.

    They are choices that differ, and settings that differ among runs of one choice.
    """
    values: dict[tuple[Any, str], set[str]] = {}  # by choice and name
    for settings in runs:
        for name, value in settings.items():
            values.setdefault((_choice(settings, name), name), set()).add(str(value))
    result = []
    for settings in runs:
        differing = []
        for name, value in settings.items():
            if len(values[_choice(settings, name), name]) > 1:
                differing.append(_setting_text(name, value))
        result.append(differing)
    return result


def _choice(settings: dict[str, Any], name: str) -> Any:
    """Return the choice that setting `name` belongs to; None for the choice itself."""
    target = name.partition(".")[0] + "._target_"
    if name == target:
        return None
    return settings.get(target)


def _setting_text(name: str, value: Any) -> str:
    """Return "setting=value", by the last part of its name; a choice by its module's name."""
    *parents, last = name.split(".")
    if last == "_target_":
        return f"{parents[-1]}={str(value).split('.')[-2]}"
    return f"{last}={value}"


def _mean(frames: list[pandas.DataFrame]) -> pandas.DataFrame:
    """Return the mean of `frames`, each layer over those that have it, bits in ascending order."""
    import pandas

    mean = pandas.concat(frames).groupby(level=0, sort=False).mean()
    return mean.sort_index(axis=1, key=lambda bits: bits.astype(int))
