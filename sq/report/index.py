"""The index over all experiments: made from what their pages say of themselves, so that no record is read again."""

from __future__ import annotations

import json
import re
import statistics
from collections import Counter
from pathlib import Path
from typing import Any

from sq.config.constraints import FLOAT
from sq.core.wording import quantity
from sq.records.experiments import Experiment
from sq.records.record import Record, read
from sq.report import benchmark_summary as bench
from sq.report import experiment, page
from sq.report.figure import line_name
from sq.report.labels import ACTIVATION, network, plain
from sq.report.table import HEADLINES, Row

PAGE = "index.html"
TEXTS = ("table.md", "table.csv", "table.tex", "claims.md", "figure.svg", "figure.pdf")
BENCH_TEXTS = ("table.md", "totals.csv", "layers.csv", "scaling.svg", "tradeoff.svg")


def summary(own: page.Contents) -> dict[str, Any]:
    """Return what the index, and the head of its page, say of an experiment."""

    def seen(get: Any) -> list[str]:
        """Return the distinct values, the most frequent first."""
        found = Counter(str(value) for r in own.records if (value := get(r)) not in (None, "None"))
        return [value for value, _ in sorted(found.items(), key=lambda item: (-item[1], item[0]))]

    def provenance(r: Record) -> dict[str, Any]:
        return r.get("provenance", {})

    return {
        "name": own.name,
        "question": " ".join(h["question"] for h in own.headers if "question" in h),
        "done": sum(r["status"] == "done" for r in own.records),
        "failed": sum(r["status"] == "failed" for r in own.records),
        "models": sorted(seen(lambda r: r["choices"].get("model"))),
        "datasets": sorted(seen(lambda r: r["choices"].get("dataset"))),
        "methods": sorted(seen(lambda r: r["choices"].get("quantizer"))),
        "seeds": sorted(seen(lambda r: r["config"].get("seed")), key=lambda s: (len(s), s)),
        "commits": seen(lambda r: provenance(r).get("commit")),
        "dirty": any(provenance(r).get("dirty") for r in own.records),
        "machines": seen(lambda r: _machine(provenance(r))),
        "seconds": round(sum(sum(r.get("seconds", {}).values()) for r in own.records), 1),
        "best": best(own.rows),
    }


def best(rows: list[Row]) -> list[dict[str, Any]]:
    """Return, for each network, full precision and at each bit-width the best mean over seeds and its method.

    Rows with quantized inputs do not count, unless there are no others.
    """
    plain_rows = [row for row in rows if row["labels"].get(ACTIVATION, FLOAT) == FLOAT] or rows
    networks: dict[tuple[str, str], list[Row]] = {}
    for row in plain_rows:
        networks.setdefault((network(row), row["headline"]), []).append(row)
    found = []
    for (name, headline), own in networks.items():
        title, form = HEADLINES[headline]
        full = statistics.fmean(
            s + d for row in own for s, d in zip(row["score"], row["drop"], strict=True)
        )
        tops = []
        for bits in sorted({row["labels"]["bits"] for row in own}, reverse=True):
            top = max(
                (row for row in own if row["labels"]["bits"] == bits),
                key=lambda r: statistics.fmean(r["score"]),
            )
            tops.append(
                [plain(bits), f"{statistics.fmean(top['score']):{form}}", line_name(top, "bits")]
            )
        found.append({"network": name, "figure": title, "full": f"{full:{form}}", "best": tops})
    return found


def build(results: Path, questions: list[Experiment]) -> str:
    """Return the index of the folder `results`: its experiments, reported or not, and its benchmarks."""
    folders = [f for f in sorted(results.iterdir()) if f.is_dir()] if results.is_dir() else []
    experiments = [own for f in folders if (own := _experiment(f)) is not None]
    benchmarks = [_benchmark(f, questions) for f in folders if (f / "bench.json").is_file()]
    return page.index(experiments, benchmarks)


def _experiment(folder: Path) -> dict[str, Any] | None:
    """Return a line of the index; None for a folder that holds no records."""
    records = sum(file.suffix == ".json" for file in folder.iterdir())
    if not records or (folder / "bench.json").is_file():
        return None
    own = _told(folder / PAGE)
    if own is None:
        line: dict[str, Any] = {
            "name": folder.name,
            "question": "",
            "done": None,
            "failed": 0,
            "href": "",
            "files": [],
        }
        missing = (
            f"{quantity(records, 'record')}, not reported yet: python -m sq.report {folder.name}"
        )
        return line | {"models": [], "methods": [], "best": [], "commits": [], "note": missing}
    old = own["done"] + own["failed"] != records
    runs = quantity(own["done"] + own["failed"], "run")
    note = f"the page is of {runs}, now there are {records}: report again" if old else ""
    kept = {
        name: own[name]
        for name in ("name", "question", "done", "failed", "models", "methods", "best")
    }
    commits = [commit[:8] for commit in own["commits"]]
    return kept | {
        "commits": commits,
        "href": f"{folder.name}/{PAGE}",
        "note": note,
        "files": _links(folder, TEXTS),
    }


def _told(file: Path) -> dict[str, Any] | None:
    """Return the summary in the head of a page; None if there is no page, or none of ours."""
    if not file.is_file():
        return None
    with file.open(encoding="utf-8") as stream:
        head = stream.read(1 << 18)  # of a page that may be large
    found = re.search(
        r'<script type="application/json" id="summary">(.*?)</script>', head, re.DOTALL
    )
    return json.loads(found[1]) if found else None


def _benchmark(folder: Path, questions: list[Experiment]) -> dict[str, Any]:
    made = read(folder / "bench.json") or {}
    question = next(
        (own.get("question", "") for own in experiment.headers(folder.name, questions)), ""
    )
    found, commit = (
        made.get("measurements", []),
        (made.get("provenance", {}).get("commit") or "")[:8],
    )
    totals = bench.totals(found, made["config"]["reference"]) if found else []
    most = max((row["bits"] for row in totals), default=0)
    return {
        "name": folder.name,
        "question": question,
        "models": [],
        "methods": list(dict.fromkeys(m["quantizer"] for m in found)),
        "commits": [commit] if commit else [],
        "totals": [_total(row) for row in totals if row["bits"] == most],
        "href": "",
        "note": "",
        "files": _links(folder, BENCH_TEXTS),
    }


def _total(row: dict[str, Any]) -> list[str]:
    """Return method, speed-up and error ratio of a line of a benchmark's totals."""
    speedup, error = row["speedup"], row["error_ratio"]
    if speedup is None:
        fast = "-"
    else:
        fast = (
            "reference"
            if speedup == 1
            else f"{speedup:.0f}x"
            if speedup >= 100
            else f"{speedup:.3g}x"
        )
    return [row["quantizer"], fast, "" if error is None else f"error {error:.3f}x"]


def _links(folder: Path, names: tuple[str, ...]) -> list[list[str]]:
    return [[name, f"{folder.name}/{name}"] for name in names if (folder / name).is_file()]


def _machine(provenance: dict[str, Any]) -> str | None:
    if not provenance:
        return None
    device = provenance.get("device", "cpu")
    where = provenance.get("processor", "unknown processor") if device == "cpu" else device
    threads = provenance.get("threads", "?")
    return f"{where}, {threads} thread{'' if threads == 1 else 's'}"
