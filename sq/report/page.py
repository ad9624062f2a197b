"""The HTML pages of reports: one file each, self-contained, so that it opens without a server."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sq.records.experiments import Experiment
from sq.records.record import Record
from sq.report import page_data
from sq.report.rows import Row

if TYPE_CHECKING:
    import jinja2
    import pandas

ASSETS = Path(__file__).parent / "assets"
COMMON = ("dom.js", "table.js")
EXPERIMENT = ("chart.js", "figures.js", "layers.js", "diff.js", "experiment.js")


@dataclass
class Contents:
    """The contents of an experiment's page.

    Parameters
    ----------
    name : the experiment
    headers : see `headers`
    records : its runs, failed ones too, see `sq.report.slim`
    shapes : those of layers, in the order of the index that records hold, see `sq.report.slim`
    rows : see `sq.report.table.rows`
    table : the rows as text cells
    claims : published figures beside measured ones; may be empty
    files : names of the tables and figures beside the page
    """

    name: str
    headers: list[dict[str, str]]
    records: list[Record]
    shapes: list[tuple]
    rows: list[Row]
    table: pandas.DataFrame | None
    claims: pandas.DataFrame | None
    files: list[str]


def headers(name: str, experiments: Iterable[Experiment]) -> list[dict[str, str]]:
    """Return the headers of the `experiments` that keep their records under `name`.

    Returns
    -------
    a mapping for each file, that of `name`.yaml first: `file`, and the parts of its header by their
    words in lower case: `question`, `run`, `cost`, `expect`, `source`
    """
    files = [experiment for experiment in experiments if experiment.name == name]
    files.sort(key=lambda experiment: (experiment.stem != name, experiment.stem))
    result = []
    for experiment in files:
        header = {"file": experiment.file.name}
        for word, text in experiment.header.items():
            header[word.lower()] = text
        result.append(header)
    return result


def experiment(contents: Contents, summary: dict[str, Any]) -> str:
    """Return the page of an experiment; `summary`, which the index shows, goes into its head."""
    records, labels = page_data.order(contents.records)
    runs = page_data.runs(records, labels)
    data = {
        "look": page_data.look(),
        "runs": runs,
        "groups": page_data.groups(contents.rows, runs["key"]),
        "summary": None,
        "claims": None,
        "failures": page_data.failures(records),
        "shapes": contents.shapes,
    }
    if contents.table is not None:
        data["summary"] = page_data.cells(contents.table)
    if contents.claims is not None and len(contents.claims):
        data["claims"] = page_data.cells(contents.claims)
    layers = [escaped(record.get("columns", "null")) for record in records]
    body = _templates().get_template("experiment.html")
    return _page(
        f"{contents.name} - sq",
        body.render(
            name=contents.name,
            headers=contents.headers,
            tiles=tiles(summary),
            finished=bool(contents.rows),
            files=contents.files,
        ),
        EXPERIMENT,
        head={"summary": embed(summary)},
        blocks={"page": embed(data), "layers": "[" + ",\n".join(layers) + "]"},
    )


def index(experiments: list[dict[str, Any]], benchmarks: list[dict[str, Any]]) -> str:
    """Return the page over all experiments (see `sq.report.index`)."""
    data = {"experiments": experiments, "benchmarks": benchmarks}
    body = _templates().get_template("index.html").render()
    return _page("Results - sq", body, ("index.js",), head={}, blocks={"index": embed(data)})


def tiles(summary: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Return the figures at the top of a page, of all runs together: label, value, note."""
    commits = [commit[:8] for commit in summary["commits"]]
    changes = "with changes not committed" if summary["dirty"] else ""
    rows = [
        ("Runs", f"{summary['done']} done", f"{summary['failed'] or 'none'} failed"),
        ("Models", _first(summary["models"], 3), _first(summary["datasets"], 3)),
        ("Methods", _first(summary["methods"], 6), ""),
        ("Seeds", str(len(summary["seeds"])), _first(summary["seeds"], 6)),
        ("Time of all runs", _duration(summary["seconds"]), ""),
        ("Commits", _first(commits, 3), changes),
        ("Machines", str(len(summary["machines"])), _first(summary["machines"], 2)),
    ]
    return [row for row in rows if row[1] not in ("", "0")]


def _duration(seconds: float) -> str:
    """Return a duration in hours, or in minutes below one hour."""
    hours = seconds / 3600
    if hours >= 1:
        return f"{hours:.1f} h"
    return f"{hours * 60:.1f} min"


def _first(values: list[str], count: int) -> str:
    """Return the first `count` values in words, and how many more there are."""
    text = ", ".join(values[:count])
    if len(values) > count:
        text += f" and {len(values) - count} more"
    return text


def embed(data: Any) -> str:
    """Return `data` as JSON for a script element."""
    return escaped(json.dumps(data, separators=(",", ":"), ensure_ascii=False))


def escaped(text: str) -> str:
    """Return JSON that cannot end its script element: an error may well quote ``</script>``."""
    return text.replace("<", "\\u003c")


def _page(
    title: str, body: str, scripts: tuple[str, ...], *, head: dict[str, str], blocks: dict[str, str]
) -> str:
    """Return a page; `head` and `blocks` are JSON by id, at its head and at its end."""
    code = "\n".join(_asset(name) for name in (*COMMON, *scripts))
    script = f'(() => {{\n"use strict";\n{code}\n}})();'
    template = _templates().get_template("page.html")
    page = template.render(
        title=title, body=body, css=_asset("page.css"), script=script, head=head, blocks=blocks
    )
    return page.rstrip() + "\n"


def _asset(name: str) -> str:
    return (ASSETS / name).read_text(encoding="utf-8").strip()


@cache
def _templates() -> jinja2.Environment:
    import jinja2

    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(ASSETS), autoescape=True, undefined=jinja2.StrictUndefined
    )
