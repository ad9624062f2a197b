"""What tells the runs of an experiment apart, in the words that tables and figures use."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

from sq.config.constraints import FLOAT
from sq.config.schema import leaves
from sq.records.record import BOOKKEEPING, Record
from sq.report.distinct import ABSENT, distinct

SEEDS = ("seed", "calibration.seed", "sensitivity.seed", "quantizer.seed")
# choices whose varying settings are part of their name
NAMED_WITH_KNOBS = ("quantizer", "sensitivity", "calibration")
# choices that say nothing where files and times are told apart
APART = ("export", "latency", "metric")
NETWORK = ("model", "dataset")  # choices that make runs of different networks
FOLLOWS = ("activation.bits", "allocation.average_bits")  # settings that another column shows
# settings of the solver that a learned quantizer starts from: `init` names it
STARTS = "quantizer.start."
ACTIVATION = "act. bits"  # the column


class Labels:
    """The labels of runs: method, bits, and whatever else varies among them; seeds do not count.

    Parameters
    ----------
    records : the runs to be told apart; failed ones may lack settings
    """

    def __init__(self, records: list[Record]):
        self.records = records
        # By name of a part of the config: its distinct forms, flat, {} the last of them; and which
        # one each run has.
        self._parts: dict[str, tuple[list[dict[str, Any]], list[int]]] = {}
        for name in dict.fromkeys(
            name for r in records for name in r["config"] if name not in BOOKKEEPING
        ):
            settings, first = distinct([r["config"].get(name, ABSENT) for r in records])
            options, second = distinct([r["choices"].get(name) for r in records])
            forms, of = distinct(
                [(a, b) if a >= 0 else ABSENT for a, b in zip(first, second, strict=True)]
            )
            self._parts[name] = [*(_flat(name, settings[a], options[b]) for a, b in forms), {}], of
        self._varying = sorted(
            name for part in self._parts for name in self._vary(part, range(len(records)))
        )
        self._knobs = {family: self._knobs_by_choice(family) for family in NAMED_WITH_KNOBS}
        activations = self._parts.get("activation", ([], []))[0]
        self._activations = any(form.get("activation.bits") for form in activations)
        # Where only one kind of activation quantization was used, its bits say as much.
        self._one_activation = (
            len({form.get("choice of activation") for form in activations[:-1]} - {"none"}) <= 1
        )

    def groups(self) -> list[list[int]]:
        """Return the places of the records that differ in seeds only, a list for each group."""
        texts = []
        for forms, of in self._parts.values():
            form_texts = [json.dumps(form, sort_keys=True) for form in forms]
            texts.append([form_texts[place] for place in of])
        found: dict[tuple[str, ...], list[int]] = {}
        for i in range(len(self.records)):
            found.setdefault(tuple([own[i] for own in texts]), []).append(i)
        return list(found.values())

    def of(self, i: int) -> dict[str, Any]:
        """Return the labels of record `i`, by column."""
        record, own = self.records[i], self._settings(i)
        labels: dict[str, Any] = {
            "method": self._named("quantizer", i, own),
            "bits": record["config"].get("bits"),
        }
        if self._activations:
            labels[ACTIVATION] = _activation_bits(record) or FLOAT
        for name in self._varying:
            family = name.removeprefix("choice of ").split(".")[0]
            if family in ("quantizer", "bits") or name.endswith("_target_") or name in FOLLOWS:
                continue
            if name == "choice of activation" and self._one_activation:
                continue
            if name.startswith("choice of "):
                labels[family] = self._named(family, i, own)
            elif f"choice of {family}" not in self._varying:
                # a setting of the same choice, set to other values
                value = own.get(name)
                # what is a label can be looked up
                labels[name] = str(value) if isinstance(value, list) else value
        return labels

    def _settings(self, i: int) -> dict[str, Any]:
        """Return every setting that shaped the result of record `i`, by dotted name."""
        return {
            name: value
            for forms, of in self._parts.values()
            for name, value in forms[of[i]].items()
        }

    def _vary(self, part: str, runs: Iterable[int]) -> set[str]:
        """Return the names in a part of the config under which not all of `runs` have the same."""
        forms, of = self._parts[part]
        return _varying([forms[place] for place in {of[i] for i in runs}])

    def _named(self, family: str, i: int, own: dict[str, Any]) -> str:
        """Return a run's choice of `family`, with those of its settings that vary among the runs of that choice."""
        name = self.records[i]["choices"].get(family, "-")
        knobs = self._knobs.get(family, {}).get(name, [])
        return " ".join([name, *(f"{k.rsplit('.', 1)[1]}={own.get(k)}" for k in knobs)])

    def _knobs_by_choice(self, family: str) -> dict[str, list[str]]:
        """Return, by choice of `family`, the names of its settings that vary among its runs on one network.

        What differs from network to network only, as steps that suit its size, says nothing beside
        its name.
        """
        if family not in self._parts:
            return {}
        peers: dict[tuple[str, ...], list[int]] = {}
        for i, record in enumerate(self.records):
            peers.setdefault(
                tuple(record["choices"].get(part, "-") for part in (family, *NETWORK)), []
            ).append(i)
        found: dict[str, set[str]] = {}
        for (name, *_), own in peers.items():
            found.setdefault(name, set()).update(k for k in self._vary(family, own) if "." in k)
        return {
            name: sorted(k for k in own if not k.startswith(STARTS)) for name, own in found.items()
        }


def rank(name: str, value: Any) -> tuple:
    """Sort numbers by value (bits from high to low), text with its numbers by value, absent values last."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return (0, -value if name == "bits" else value, ())
    words = tuple(
        (not w.isdigit(), int(w) if w.isdigit() else 0, w) for w in re.split(r"(\d+)", str(value))
    )
    return (1 if value is not None else 2, 0, words)


def plain(value: Any) -> str:
    """Return a label as a table shows it."""
    return f"{value:g}" if isinstance(value, float) else str(value)


def network(row: Mapping[str, Any]) -> str:
    """Return which network and images the runs of a row are of, in words: what has panels to itself."""
    return " ".join(plain(row["labels"][name]) for name in NETWORK if name in row["labels"])


def telling(groups: Iterable[list[dict[str, Any]]]) -> list[str]:
    """Return the labels that tell rows of one group apart, as they come; what differs between groups says nothing."""
    found: dict[str, None] = {}
    for rows in groups:
        for name in dict.fromkeys(name for row in rows for name in row["labels"]):
            if len({str(row["labels"].get(name)) for row in rows}) > 1:
                found[name] = None
    return list(found)


def _flat(part: str, settings: Any, choice: str | None) -> dict[str, Any]:
    """Return the settings of a part, flat, seeds apart."""
    flat = {name: value for name, value in leaves({part: settings}).items() if name not in SEEDS}
    return flat if choice is None else flat | {f"choice of {part}": choice}


def _varying(forms: list[dict[str, Any]]) -> set[str]:
    """Return the names under which not all of `forms` have the same; absent is the same as null."""
    names = {name for form in forms for name in form} if len(forms) > 1 else ()
    return {name for name in names if len(distinct([form.get(name) for form in forms])[0]) > 1}


def _activation_bits(record: Record) -> int | None:
    return (record["config"].get("activation") or {}).get("bits")
