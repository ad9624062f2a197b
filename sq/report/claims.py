"""Published figures beside our own, only where the settings are the same.

``results/claims.yaml`` holds them: by source, with the full-precision figure they start from. A
record is compared with a claim if every setting the claim names is the record's, and its full
precision is the claim's within `SAME_BASELINE`: rows of different checkpoints are never mixed. A
claim is a figure, or a range: [20, 200].
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sq.config.schema import leaves
from sq.errors import SqError, one_line
from sq.records.record import Record
from sq.report.table import HEADLINES, headline, speedup, yardsticks

if TYPE_CHECKING:
    import pandas

FILE = "claims.yaml"
# between the claim's full precision and ours: points, and share
SAME_BASELINE = {"top1": 0.3, "map": 0.003}
# what is claimed; "drop" of the record's headline, "speedup" over OBQ
FIGURES = ("top1", "map", "drop", "speedup")
KEYS = {"source", "evidence", "setting", "when", "full", "figures"}


def read(results: Path) -> list[dict[str, Any]]:
    """Return the claims of results/claims.yaml, one for each figure; none if there is no such file.

    Returns
    -------
    each with `source`, `evidence`, `setting` (words), `when` (what a record must have), `full`,
    `name` and `value` (the figure claimed, or its lowest and highest)

    Raises
    ------
    SqError : the file is not laid out as claims are
    """
    import yaml

    file = results / FILE
    if not file.is_file():
        return []
    try:
        groups = yaml.safe_load(file.read_text())
        return [claim for group in groups for claim in _spread(group)]
    except (yaml.YAMLError, TypeError, KeyError, AttributeError, ValueError) as error:
        raise SqError(
            f"{file} is not a list of claims ({one_line(error)}): see its first lines"
        ) from error


def _spread(group: Mapping[str, Any]) -> list[dict[str, Any]]:
    if unknown := {*group} - KEYS:
        raise ValueError(
            f"{', '.join(sorted(unknown))}: not a key of a claim; keys: {', '.join(sorted(KEYS))}"
        )
    common = {"source": group["source"], "evidence": group["evidence"], "setting": group["setting"]}
    claims = []
    for figure in group["figures"]:
        when = {**group["when"], **figure}
        claimed = {name: when.pop(name) for name in [*when] if name in FIGURES}
        ((name, value),) = claimed.items()
        claims.append(
            common
            | {"when": when, "full": group["full"][when["model"]], "name": name, "value": value}
        )
    return claims


def matching(claim: Mapping[str, Any], records: list[Record]) -> list[Record]:
    """Return the finished records whose settings and full precision are the claim's."""
    return [
        r
        for r in records
        if r["status"] == "done" and _has(r, claim["when"]) and _same_baseline(r, claim)
    ]


def _has(record: Record, when: Mapping[str, Any]) -> bool:
    """Tell whether `record` has every setting: a family's choice, a dotted setting, or a field of its own."""
    choices = record["choices"]
    if any(name in choices and choices[name] != value for name, value in when.items()):
        return False  # most are: no need to flatten the config
    known = {**leaves(record["config"]), **choices, "image_set": record.get("image_set")}
    return all(name in known and known[name] == value for name, value in when.items())


def _same_baseline(record: Record, claim: Mapping[str, Any]) -> bool:
    name = headline(record)
    if claim["name"] in HEADLINES and claim["name"] != name:
        return False
    return abs(record["results"][f"{name}_full"] - claim["full"]) <= SAME_BASELINE[name]


def table(records: list[Record], claims: list[dict[str, Any]]) -> pandas.DataFrame:
    """Return one row for each claim that records match: claimed, measured (mean of seeds), and the gap."""
    import pandas

    rows = []
    choices = [r["choices"] for r in records]
    used = {
        name: {own.get(name) for own in choices}
        for name in dict.fromkeys(name for own in choices for name in own)
    }
    for claim in claims:
        if any(value not in used.get(name, (value,)) for name, value in claim["when"].items()):
            continue  # of a network or method that none of them has
        same = matching(claim, records)
        if not (measured := _measured(claim, same, records)):
            continue
        when, mean = claim["when"], statistics.fmean(measured)
        form = ".1f" if claim["name"] == "speedup" else HEADLINES[headline(same[0])][1]
        rows.append(
            {
                "source": claim["source"],
                "model": when["model"],
                "method": when["quantizer"],
                "bits": f"{when['bits']:g}",
                "figure": claim["name"],
                "claimed": _words(claim["value"], form),
                "measured": f"{mean:{form}}",
                "gap": _gap(mean, claim["value"], form),
                "runs": str(len(measured)),
                "setting": claim["setting"],
            }
        )
    return pandas.DataFrame(rows)


def _measured(claim: Mapping[str, Any], same: list[Record], records: list[Record]) -> list[float]:
    if claim["name"] == "speedup":  # known only beside OBQ's runs on the same machine
        obq = yardsticks(records)
        return [times for r in same if (times := speedup(r, obq)) is not None]
    return [r["results"][claim["name"]] for r in same]


def _words(value: float | list[float], form: str) -> str:
    return (
        " to ".join(f"{end:{form}}" for end in value)
        if isinstance(value, list)
        else f"{value:{form}}"
    )


def _gap(mean: float, value: float | list[float], form: str) -> str:
    """Return how far `mean` is from the claim; of a range, from its nearest end outside."""
    if isinstance(value, list):
        low, high = value
        return (
            "within" if low <= mean <= high else f"{mean - (low if mean < low else high):+{form}}"
        )
    return f"{mean - value:+{form}}"
