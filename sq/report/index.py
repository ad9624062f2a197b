"""The index over all experiments, built from the summaries in their pages; no record is read."""

from __future__ import annotations

import json
import re
import statistics
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from sq.config.constraints import FLOAT
from sq.core.wording import quantity
from sq.records.experiments import Experiment
from sq.records.record import Record, read
from sq.report import benchmark_summary, page
from sq.report.figure import line_name
from sq.report.labels import ACTIVATION, as_text, network
from sq.report.rows import Row, full_precision, grouped, optional, select, values
from sq.report.table import HEADLINES

PAGE = "index.html"
HEAD_CHARACTERS = 1 << 18  # of a page, which may be large: the summary is among them
# The summary in a page's head, see `page.experiment`.
SUMMARY = re.compile(
    r'<script type="application/json" id="summary">(.*?)</script>', flags=re.DOTALL
)
# Files that the index links to.
TEXTS = ("table.md", "table.csv", "table.tex", "claims.md", "figure.svg", "figure.pdf")
BENCH_TEXTS = ("table.md", "totals.csv", "layers.csv", "scaling.svg", "tradeoff.svg")
# Parts of a page's summary that the index shows as they are.
SHOWN = ("name", "question", "done", "failed", "models", "methods", "best")


def summary(contents: page.Contents) -> dict[str, Any]:
    """Return the summary of an experiment, for the index and for the head of its page."""
    records = contents.records
    status = values(records, "status")
    choices = values(records, "choices")
    provenance = optional(records, "provenance", {})
    questions = [header["question"] for header in contents.headers if "question" in header]
    seconds = [sum(phases.values()) for phases in optional(records, "seconds", {})]
    seeds = _by_frequency(optional(values(records, "config"), "seed"))
    return {
        "name": contents.name,
        "question": " ".join(questions),
        "done": status.count("done"),
        "failed": status.count("failed"),
        "models": sorted(_by_frequency(optional(choices, "model"))),
        "datasets": sorted(_by_frequency(optional(choices, "dataset"))),
        "methods": sorted(_by_frequency(optional(choices, "quantizer"))),
        "seeds": sorted(seeds, key=lambda seed: (len(seed), seed)),  # numbers in order
        "commits": _by_frequency(optional(provenance, "commit")),
        "dirty": any(optional(provenance, "dirty")),
        "machines": _by_frequency(map(_machine, provenance)),
        "seconds": round(sum(seconds), 1),
        "best": best(contents.rows),
    }


def _by_frequency(entries: Iterable[Any]) -> list[str]:
    """Return the distinct values as text, the most frequent first, without absent ones."""
    counts = Counter(map(str, entries))
    del counts["None"]  # also a setting that is null
    return sorted(counts, key=lambda value: (-counts[value], value))


def best(rows: list[Row]) -> list[dict[str, Any]]:
    """Return, for each network, full precision, and the best method and its mean score by bits.

    Rows with quantized activations do not count, unless there are no others.
    """
    float_rows = [row for row in rows if row["labels"].get(ACTIVATION, FLOAT) == FLOAT]
    networks = grouped(float_rows or rows, lambda row: (network(row), row["headline"]))
    result = []
    for (name, headline), members in networks.items():
        title, form = HEADLINES[headline]
        by_bits = grouped(members, lambda row: row["labels"]["bits"])
        tops = []
        for bits in sorted(by_bits, reverse=True):
            top = max(by_bits[bits], key=lambda row: statistics.fmean(row["score"]))
            score = f"{statistics.fmean(top['score']):{form}}"
            tops.append([as_text(bits), score, line_name(top, "bits")])
        full = f"{full_precision(members):{form}}"
        result.append({"network": name, "figure": title, "full": full, "best": tops})
    return result


def build(results: Path, questions: list[Experiment]) -> str:
    """Return the index of folder `results`: experiments, reported or not, and benchmarks."""
    experiments, benchmarks = [], []
    folders = filter(Path.is_dir, results.iterdir()) if results.is_dir() else ()
    for folder in sorted(folders):
        if (folder / "bench.json").is_file():
            benchmarks.append(_benchmark(folder, questions))
        elif any(folder.glob("*.json")):
            experiments.append(_experiment(folder))
    return page.index(experiments, benchmarks)


def _experiment(folder: Path) -> dict[str, Any]:
    """Return the line of an experiment, whose `folder` holds records."""
    records = len(list(folder.glob("*.json")))
    summary = _summary_of_page(folder / PAGE)
    if summary is None:
        note = f"{quantity(records, 'record')}, not reported yet: python -m sq.report {folder.name}"
        return {
            "name": folder.name,
            "question": "",
            "done": None,
            "failed": 0,
            "href": "",
            "files": [],
            "models": [],
            "methods": [],
            "best": [],
            "commits": [],
            "note": note,
        }
    reported = summary["done"] + summary["failed"]
    note = ""
    if reported != records:
        runs = quantity(reported, "run")
        note = f"the page is of {runs}, now there are {records}: report again"
    line = select(summary, SHOWN)
    line["commits"] = [commit[:8] for commit in summary["commits"]]
    line["href"] = f"{folder.name}/{PAGE}"
    line["note"] = note
    line["files"] = _links(folder, TEXTS)
    return line


def _summary_of_page(file: Path) -> dict[str, Any] | None:
    """Return the summary in the head of a page; None if there is no page, or none of ours."""
    if not file.is_file():
        return None
    with file.open(encoding="utf-8") as stream:
        match = SUMMARY.search(stream.read(HEAD_CHARACTERS))
    return json.loads(match[1]) if match else None


def _benchmark(folder: Path, questions: list[Experiment]) -> dict[str, Any]:
    """Return the line of a benchmark."""
    record = read(folder / "bench.json") or {}
    headers = page.headers(folder.name, questions)
    commit = record.get("provenance", {}).get("commit") or ""
    measurements = record.get("measurements", [])
    totals = []
    if measurements:
        totals = benchmark_summary.totals(measurements, record["config"]["reference"])
    most_bits = max(values(totals, "bits"), default=0)  # one bit-width is shown
    return {
        "name": folder.name,
        "question": headers[0].get("question", "") if headers else "",
        "models": [],
        "methods": benchmark_summary.distinct(measurements, "quantizer"),
        "commits": [commit[:8]] if commit else [],
        "totals": [_total(total) for total in totals if total["bits"] == most_bits],
        "href": "",
        "note": "",
        "files": _links(folder, BENCH_TEXTS),
    }


def _total(total: dict[str, Any]) -> list[str]:
    """Return method, speed-up and error ratio of a line of a benchmark's totals."""
    error_cell = ""
    if total["error_ratio"] is not None:
        error_cell = f"error {total['error_ratio']:.3f}x"
    return [total["quantizer"], _speedup_cell(total["speedup"]), error_cell]


def _speedup_cell(speedup: float | None) -> str:
    if speedup is None:
        return "-"
    if speedup == 1:
        return "reference"
    if speedup >= 100:
        return f"{speedup:.0f}x"  # three digits would be written as a power of ten from 1,000 on
    return f"{speedup:.3g}x"


def _links(folder: Path, names: tuple[str, ...]) -> list[list[str]]:
    """Return name and address of the files that there are in `folder`."""
    return [[name, f"{folder.name}/{name}"] for name in names if (folder / name).is_file()]


def _machine(provenance: Record) -> str | None:
    """Return processor or GPU, and threads; None if a run failed before they were known."""
    if not provenance:  # the run failed early
        return None
    device = provenance.get("device", "cpu")
    if device == "cpu":
        device = provenance.get("processor", "unknown processor")
    threads = provenance.get("threads", "?")
    if threads == 1:
        return f"{device}, 1 thread"
    return f"{device}, {threads} threads"
