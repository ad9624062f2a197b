"""What the page of an experiment holds, as plain data: every run in columns, so that 10,000 stay small."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from sq.records.record import BOOKKEEPING, Record
from sq.report import style
from sq.report.distinct import columns
from sq.report.labels import Labels, plain, rank
from sq.report.table import HEADLINES, Row

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
APART = {
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
}
APART |= {"error", "traceback"}


def order(records: list[Record]) -> tuple[list[Record], list[dict[str, Any]]]:
    """Return `records` as the page lists them, by label, seed and key; and the labels of each."""
    found = Labels(records)
    groups = [(found.of(members[0]), members) for members in found.groups()]
    groups.sort(key=lambda group: [rank(name, value) for name, value in group[0].items()])
    ordered, labels = [], []
    for own, members in groups:
        runs = [records[i] for i in members]
        ordered += sorted(runs, key=lambda r: (rank("seed", r["config"].get("seed")), r["key"]))
        labels += [own] * len(members)
    return ordered, labels


def runs(records: list[Record], labels: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the runs in columns, in the order in which they come.

    Returns
    -------
    `key`; `labels`, `settings` and `facts`: by name (see `sq.report.distinct.columns`); `figures`:
    numbers, by name, null where a run has none
    """
    return {
        "key": [r["key"] for r in records],
        "labels": columns(_each_once(labels)),
        "settings": _settings(records),
        "facts": columns([_facts(r) for r in records]),
        "figures": numbers([_figures(r) for r in records]),
    }


def groups(rows: list[Row], keys: Iterable[str]) -> list[dict[str, Any]]:
    """Return the labels of each of the table's `rows` and the places of its runs among `keys`."""
    places = {key: place for place, key in enumerate(keys)}
    return [
        {
            "labels": _texts(row["labels"]),
            "headline": row["headline"],
            "runs": [places[key] for key in row["keys"]],
        }
        for row in rows
    ]


def failures(records: list[Record]) -> list[dict[str, Any]]:
    """Return place, error and traceback of the failed among `records`."""
    return [
        {
            "run": place,
            "error": r.get("error", "no cause was recorded"),
            "traceback": r.get("traceback", ""),
        }
        for place, r in enumerate(records)
        if r["status"] == "failed"
    ]


def cells(table: pandas.DataFrame) -> dict[str, Any]:
    """Return the columns and rows of a table of text cells."""
    return {"columns": [str(name) for name in table.columns], "rows": table.to_numpy().tolist()}


def look() -> dict[str, Any]:
    """Return the house style of figures, and how each figure is called and shown."""
    return {
        "colours": style.COLOURS,
        "markers": style.MARKERS,
        "dashes": style.DASHES,
        "figures": FIGURES,
    }


def numbers(dicts: list[dict[str, float]]) -> dict[str, list[float | None]]:
    """Turn one mapping a run into one column a name, 6 digits of each number; null where there is none."""
    names = dict.fromkeys(name for own in dicts for name in own)
    return {name: [_short(own.get(name)) for own in dicts] for name in names}


def _texts(labels: Mapping[str, Any]) -> dict[str, str]:
    """Return labels as text; a run that failed early may have no bits."""
    return {
        name: plain(value) for name, value in labels.items() if value is not None or name != "bits"
    }


def _each_once(labels: list[dict[str, Any]]) -> list[dict[str, str]]:
    """Return `_texts` of labels, of which most are one object many times."""
    made = {place: _texts(own) for place, own in {id(own): own for own in labels}.items()}
    return [made[id(own)] for own in labels]


def _settings(records: list[Record]) -> dict[str, Any]:
    """Return what shaped results, as it is typed: ``quantizer`` is a choice, ``quantizer.damp`` a setting."""

    def science(r: Record, what: str) -> dict[str, Any]:
        return {name: value for name, value in r[what].items() if name not in BOOKKEEPING}

    found = columns([science(r, "config") for r in records]) | columns(
        [science(r, "choices") for r in records]
    )
    return {name: found[name] for name in sorted(found) if not name.endswith("._partial_")}


def _facts(record: Record) -> dict[str, Any]:
    """Return what else is in the record but figures: where it was run, on which data, what was corrected."""
    facts = {name: value for name, value in record.items() if name not in APART}
    return facts | {
        name: value for name, value in record.get("results", {}).items() if isinstance(value, str)
    }


def _figures(record: Record) -> dict[str, float]:
    results: Mapping[str, Any] = record.get("results", {})
    found = {name: value for name, value in results.items() if isinstance(value, int | float)}
    if phases := record.get("seconds"):
        found["seconds"] = sum(phases.values())
        found |= {f"seconds.{name}": value for name, value in phases.items()}
    return found | {
        f"peak_bytes.{where}": size for where, size in record.get("peak_bytes", {}).items()
    }


def _short(value: Any) -> Any:
    return float(f"{value:.6g}") if isinstance(value, float) else value
