"""Published figures beside measured ones, only where the settings are the same.

``results/claims.yaml`` holds the claims by source, with the full-precision accuracy they start
from. A record is compared with a claim if it has every setting that the claim names, and the same
full precision within `SAME_BASELINE`: results of different checkpoints are never mixed. A claim is
a number, or a range: [20, 200].
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sq.config.schema import leaves
from sq.errors import SqError, one_line
from sq.records.record import Record
from sq.report.distinct import ordered_names
from sq.report.rows import optional, values
from sq.report.table import HEADLINES, headline, reference_times, speedup

if TYPE_CHECKING:
    import pandas

FILE = "claims.yaml"
# largest difference between the claim's full precision and ours: in points, and as a share
SAME_BASELINE = {"top1": 0.3, "map": 0.003}
# what may be claimed; "drop" is that of the record's headline, "speedup" is over OBQ
FIGURES = ("top1", "map", "drop", "speedup")
KEYS = {"source", "evidence", "setting", "when", "full", "figures"}


def read(results: Path) -> list[dict[str, Any]]:
    """Return the claims of results/claims.yaml, one for each figure; none if there is no such file.

    Returns
    -------
    each with `source`, `evidence`, `setting` (words), `when` (settings that a record must have),
    `full` (accuracy in full precision), `name` and `value` (the claimed figure: a number, or its
    lowest and highest)

    Raises
    ------
    SqError : the file is not a list of claims
    """
    import yaml

    file = results / FILE
    if not file.is_file():
        return []
    claims = []
    try:
        for group in yaml.safe_load(file.read_text()):
            claims += _claims_of(group)
    except (yaml.YAMLError, TypeError, KeyError, AttributeError, ValueError) as error:
        raise SqError(
            f"{file} is not a list of claims ({one_line(error)}): see its first lines"
        ) from error
    return claims


def _claims_of(group: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the claims of one entry of the file, see `read`."""
    unknown = set(group) - KEYS
    if unknown:
        raise ValueError(
            f"{', '.join(sorted(unknown))}: not a key of a claim; keys: {', '.join(sorted(KEYS))}"
        )
    claims = []
    for figure in group["figures"]:
        settings = {**group["when"], **figure}
        claimed = {name: settings.pop(name) for name in FIGURES if name in settings}
        ((name, value),) = claimed.items()  # one figure; a ValueError for none or several
        claims.append(
            {
                "source": group["source"],
                "evidence": group["evidence"],
                "setting": group["setting"],
                "when": settings,
                "full": group["full"][settings["model"]],
                "name": name,
                "value": value,
            }
        )
    return claims


def matching(claim: Mapping[str, Any], records: list[Record]) -> list[Record]:
    """Return the finished records whose settings and full precision are the claim's."""
    return [record for record in records if _matches(record, claim)]


def _matches(record: Record, claim: Mapping[str, Any]) -> bool:
    """Return whether a record is finished, with the claim's settings and full precision."""
    return (
        record["status"] == "done"
        and _has_settings(record, claim["when"])
        and _same_baseline(record, claim)
    )


def _has_settings(record: Record, wanted: Mapping[str, Any]) -> bool:
    """Return whether `record` has every setting `wanted`.

    A setting is the choice of a family, a dotted setting of the config, or "image_set".
    """
    choices = record["choices"]
    # Most records differ in a choice: that needs no flattened config.
    if any(name in choices and choices[name] != value for name, value in wanted.items()):
        return False
    settings = {**leaves(record["config"]), **choices, "image_set": record.get("image_set")}
    return all(name in settings and settings[name] == value for name, value in wanted.items())


def _same_baseline(record: Record, claim: Mapping[str, Any]) -> bool:
    """Return whether full precision of the record is the claim's, and in the same figure."""
    name = headline(record)
    if claim["name"] in HEADLINES and claim["name"] != name:
        return False
    difference = abs(record["results"][f"{name}_full"] - claim["full"])
    return difference <= SAME_BASELINE[name]


def table(records: list[Record], claims: list[dict[str, Any]]) -> pandas.DataFrame:
    """Return one row for each claim that records match: claimed, measured (mean of seeds), gap."""
    import pandas

    choices = values(records, "choices")
    used = {}  # choices of the records, by family
    for family in ordered_names(choices):
        used[family] = set(optional(choices, family))
    rows = []
    for claim in claims:
        # Most claims are of a network or method that no record has.
        if any(value not in used.get(name, (value,)) for name, value in claim["when"].items()):
            continue
        same = matching(claim, records)
        measured = _measured(claim, same, records)
        if measured:
            rows.append(_row(claim, headline(same[0]), measured))
    return pandas.DataFrame(rows)


def _row(claim: Mapping[str, Any], headline: str, measured: list[float]) -> dict[str, str]:
    """Return the cells of one claim; `measured` holds the figure of each run."""
    form = ".1f" if claim["name"] == "speedup" else HEADLINES[headline][1]
    mean = statistics.fmean(measured)
    settings = claim["when"]  # every claim names model, quantizer and bits
    return {
        "source": claim["source"],
        "model": settings["model"],
        "method": settings["quantizer"],
        "bits": f"{settings['bits']:g}",
        "figure": claim["name"],
        "claimed": _claimed(claim["value"], form),
        "measured": f"{mean:{form}}",
        "gap": _gap(mean, claim["value"], form),
        "runs": str(len(measured)),
        "setting": claim["setting"],
    }


def _measured(claim: Mapping[str, Any], same: list[Record], records: list[Record]) -> list[float]:
    """Return the claimed figure of the records that are the `same` as the claim."""
    if claim["name"] != "speedup":
        return values(same, "results", claim["name"])
    # A speed-up is known only beside OBQ's runs on the same machine.
    reference = reference_times(records)
    speedups = []
    for record in same:
        ratio = speedup(record, reference)
        if ratio is not None:
            speedups.append(ratio)
    return speedups


def _claimed(value: float | list[float], form: str) -> str:
    """Return the claimed number or range as text."""
    if isinstance(value, list):
        return " to ".join(f"{bound:{form}}" for bound in value)
    return f"{value:{form}}"


def _gap(mean: float, value: float | list[float], form: str) -> str:
    """Return how far `mean` is from the claim; of a range, from its nearest bound."""
    if not isinstance(value, list):
        return f"{mean - value:+{form}}"
    low, high = value
    if low <= mean <= high:
        return "within"
    if mean < low:
        return f"{mean - low:+{form}}"
    return f"{mean - high:+{form}}"
