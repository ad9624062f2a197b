"""The data in the page of an experiment: all runs as columns, so that 10,000 of them stay small."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from sq.records.record import BOOKKEEPING, Record
from sq.report import style
from sq.report.distinct import columns, ordered_names
from sq.report.labels import Labels, as_text, sort_key, sort_keys
from sq.report.rows import Row, omit, optional, values
from sq.report.table import HEADLINES

if TYPE_CHECKING:
    import pandas

# How figures are called, and shown: f decimals, e decimals and a power of ten, g digits, b bytes.
FIGURES = {
    **{name: (label, form.lstrip(".")) for name, (label, form) in HEADLINES.items()},
    "drop": ("drop", "2f"),
    "relative_error": ("rel. error", "2e"),
    "solve_seconds": ("solve s", "3f"),
    "fit_seconds": ("fit s", "3f"),
    "seconds": ("run s", "1f"),
    "peak_bytes.process": ("peak memory", "b"),
    "bits": ("mean bits", "2f"),
    "bytes": ("size", "b"),
    "kl": ("KL divergence", "2e"),
    "logit_snr_db": ("logit SNR dB", "1f"),
    "same_top1": ("same top-1 %", "2f"),
}
# Fields of a record that are no facts: other parts of the page show them.
NOT_FACTS = {
    "record",
    "key",
    "name",
    "choices",
    "config",
    "results",
    "seconds",
    "peak_bytes",
    "sensitivity",
    "columns",
    "error",
    "traceback",
}


def order(records: list[Record]) -> tuple[list[Record], list[dict[str, Any]]]:
    """Return `records` as the page lists them, by label, seed and key; and the labels of each."""
    groups = Labels(records).groups()
    groups.sort(key=lambda group: sort_keys(group[0]))
    ordered: list[Record] = []
    labels_of_run: list[dict[str, Any]] = []
    for labels, members in groups:
        ordered += sorted(members, key=_seed_and_key)
        labels_of_run += [labels] * len(members)
    return ordered, labels_of_run


def _seed_and_key(record: Record) -> tuple:
    return sort_key("seed", record["config"].get("seed")), record["key"]


def runs(records: list[Record], labels: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the runs in columns, in the order in which they come.

    Returns
    -------
    `key`; `labels`, `settings` and `facts`: by name (see `sq.report.distinct.columns`); `figures`:
    numbers, by name, null where a run has none
    """
    return {
        "key": values(records, "key"),
        "labels": columns(_label_texts(labels)),
        "settings": _settings(records),
        "facts": columns(list(map(_facts, records))),
        "figures": numbers(list(map(_figures, records))),
    }


def groups(rows: list[Row], keys: Iterable[str]) -> list[dict[str, Any]]:
    """Return the labels of each of the table's `rows`, and the indices of its runs among `keys`."""
    index_of_key = {key: index for index, key in enumerate(keys)}
    result = []
    for row in rows:
        labels = _texts(row["labels"])
        indices = [index_of_key[key] for key in row["keys"]]
        result.append({"labels": labels, "headline": row["headline"], "runs": indices})
    return result


def failures(records: list[Record]) -> list[dict[str, Any]]:
    """Return index, error and traceback of the failed among `records`."""
    result = []
    for index, record in enumerate(records):
        if record["status"] == "failed":
            error = record.get("error", "no cause was recorded")
            trace = record.get("traceback", "")
            result.append({"run": index, "error": error, "traceback": trace})
    return result


def cells(table: pandas.DataFrame) -> dict[str, Any]:
    """Return the columns and rows of a table of text cells."""
    return {"columns": [str(name) for name in table.columns], "rows": table.to_numpy().tolist()}


def look() -> dict[str, Any]:
    """Return the style of figures, and how each figure is called and shown."""
    return {
        "colours": style.COLOURS,
        "markers": style.MARKERS,
        "dashes": style.DASHES,
        "figures": FIGURES,
    }


def numbers(runs: list[dict[str, float]]) -> dict[str, list[float | None]]:
    """Turn one mapping a run into one column a name, 6 digits of each number; null for none."""
    table = {}
    for name in ordered_names(runs):
        table[name] = list(map(_short, optional(runs, name)))
    return table


def _texts(labels: Mapping[str, Any]) -> dict[str, str]:
    """Return labels as text, without the bits that a run lacks if it failed early."""
    result = {}
    for name, value in labels.items():
        if value is not None or name != "bits":
            result[name] = as_text(value)
    return result


def _label_texts(labels_of_run: list[dict[str, Any]]) -> list[dict[str, str]]:
    """Return the labels of runs as text, computed once for the many runs that share an object."""
    texts: dict[int, dict[str, str]] = {}
    result = []
    for labels in labels_of_run:
        if id(labels) not in texts:  # `labels_of_run` keeps objects alive, so ids stay unique
            texts[id(labels)] = _texts(labels)
        result.append(texts[id(labels)])
    return result


def _settings(records: list[Record]) -> dict[str, Any]:
    """Return the settings that shaped results, as they are typed, in columns.

    ``quantizer`` is a choice, and ``quantizer.damp`` a setting.
    """
    configs = map(_without_bookkeeping, values(records, "config"))
    choices = map(_without_bookkeeping, values(records, "choices"))
    table = columns(list(configs)) | columns(list(choices))
    return {name: table[name] for name in sorted(table) if not name.endswith("._partial_")}


def _without_bookkeeping(settings: Mapping[str, Any]) -> dict[str, Any]:
    return omit(settings, BOOKKEEPING)


def _facts(record: Record) -> dict[str, Any]:
    """Return what else a record holds beside figures: the machine, the data, the corrections."""
    facts = omit(record, NOT_FACTS)
    results = record.get("results", {})
    facts |= {name: value for name, value in results.items() if isinstance(value, str)}
    return facts


def _figures(record: Record) -> dict[str, float]:
    """Return all numbers of a record by name: results, seconds by phase, and peak memory."""
    results = record.get("results", {})
    figures = {name: value for name, value in results.items() if isinstance(value, int | float)}
    phases = record.get("seconds")
    if phases:
        figures["seconds"] = sum(phases.values())
        for name, seconds in phases.items():
            figures[f"seconds.{name}"] = seconds
    for memory, size in record.get("peak_bytes", {}).items():
        figures[f"peak_bytes.{memory}"] = size
    return figures


def _short(value: Any) -> Any:
    # Six digits are more than the page shows, and keep it small.
    return float(f"{value:.6g}") if isinstance(value, float) else value
