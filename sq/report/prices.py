"""The price of bits in each layer: a table for each network and each way of pricing, averaged over calibrations."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

from sq.config.schema import leaves
from sq.records.record import Record, canonical
from sq.report.labels import SEEDS

if TYPE_CHECKING:
    import pandas

# What a price follows from, beside the statistics: weights, how they are rounded, and what is
# asked.
SETTINGS = ("model", "fold", "ends", "grid", "sensitivity")
# and how they came to be: drawn, or made by a method; not which of them they were
IMAGES = "calibration._target_"


def origin(record: Record) -> str:
    """Return what the prices of a finished run follow from, as text: where that is equal, they are."""
    return json.dumps(
        [record["choices"]["model"], record["statistics"], _settings(record)], sort_keys=True
    )


def tables(records: list[Record]) -> dict[str, pandas.DataFrame]:
    """Return each layer's cost at each bit-width, averaged over distinct statistics.

    Returns
    -------
    by name: the model, and those `SETTINGS` in which its runs differ, as ``resnet20 range=mse``; a
    row a layer. Where
        inputs are priced, their table has the same name and ``inputs`` after it
    """
    import pandas

    models: dict[str, dict[str, Record]] = {}
    for record in records:
        if record["status"] == "done" and "sensitivity" in record:
            models.setdefault(record["choices"]["model"], {}).setdefault(origin(record), record)
    frames: dict[str, list[pandas.DataFrame]] = {}
    for model, priced in models.items():
        own = list(priced.values())
        for record, words in zip(own, _apart([_settings(one) for one in own]), strict=True):
            inputs = record.get("cost", {}).get("inputs")
            for rows, more in ((record["sensitivity"], []), (inputs, ["inputs"])):
                if rows:
                    frames.setdefault(" ".join([model, *words, *more]), []).append(
                        pandas.DataFrame(rows).T
                    )
    return {name: _mean(own) for name, own in frames.items()}


def stem(name: str) -> str:
    """Return what the files of the table `name` are called."""
    return "sensitivity_" + re.sub(r"[^\w.+-]+", "_", name)


def _settings(record: Record) -> dict[str, Any]:
    """Return what shapes prices, by dotted name. What a network is expected to reach is no part of it."""
    found = leaves({name: canonical(record["config"].get(name)) for name in SETTINGS})
    found[IMAGES] = (record["config"].get("calibration") or {}).get("_target_")
    return {
        name: value
        for name, value in found.items()
        if not name.startswith("model.expected") and name not in SEEDS
    }


def _apart(every: list[dict[str, Any]]) -> list[list[str]]:
    """Return the words that tell each of `every` settings from the others: choices, and knobs that differ in one."""
    values: dict[tuple[Any, str], set[str]] = {}
    for own in every:
        for name, value in own.items():
            values.setdefault((_choice(own, name), name), set()).add(str(value))
    return [
        [_word(name, v) for name, v in own.items() if len(values[_choice(own, name), name]) > 1]
        for own in every
    ]


def _choice(own: dict[str, Any], name: str) -> Any:
    """Return which choice of its family a knob is of; None for the choice itself."""
    target = name.partition(".")[0] + "._target_"
    return None if name == target else own.get(target)


def _word(name: str, value: Any) -> str:
    *parents, last = name.split(".")
    if last == "_target_":  # which choice of the family it is: the module says that
        last, value = parents[-1], str(value).split(".")[-2]
    return f"{last}={value}"


def _mean(frames: list[pandas.DataFrame]) -> pandas.DataFrame:
    """Return the mean of `frames`, of a layer over those that have it, bits in order."""
    import pandas

    whole = pandas.concat(frames).groupby(level=0, sort=False).mean()
    return whole.sort_index(axis=1, key=lambda bits: bits.astype(int))
