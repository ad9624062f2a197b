"""Pages: one HTML file each, with all it needs inside, so that it opens from a disk without server or network."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sq.records.record import Record
from sq.report import page_data
from sq.report.table import Row

if TYPE_CHECKING:
    import jinja2
    import pandas

ASSETS = Path(__file__).parent / "assets"
COMMON = ("dom.js", "table.js")
EXPERIMENT = ("chart.js", "figures.js", "layers.js", "diff.js", "experiment.js")


@dataclass
class Contents:
    """What a page is made of.

    Parameters
    ----------
    name : the experiment
    headers : see `sq.report.experiment.headers`
    records : its runs, failed ones too, see `sq.report.slim`
    shapes : those of layers (`sq.report.slim`), in the order in which records number them
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


def experiment(own: Contents, summary: dict[str, Any]) -> str:
    """Return the page of an experiment; `summary` is what the index shows of it, kept in the page's head."""
    records, labels = page_data.order(own.records)
    runs = page_data.runs(records, labels)
    data = {
        "look": page_data.look(),
        "runs": runs,
        "groups": page_data.groups(own.rows, runs["key"]),
        "summary": page_data.cells(own.table) if own.table is not None else None,
        "claims": page_data.cells(own.claims)
        if own.claims is not None and len(own.claims)
        else None,
        "failures": page_data.failures(records),
        "shapes": own.shapes,
    }
    body = _templates().get_template("experiment.html")
    return _page(
        f"{own.name} - sq",
        body.render(
            name=own.name,
            headers=own.headers,
            tiles=tiles(summary),
            finished=bool(own.rows),
            files=own.files,
        ),
        EXPERIMENT,
        head={"summary": embed(summary)},
        blocks={
            "page": embed(data),
            "layers": "[" + ",\n".join(inert(r.get("columns", "null")) for r in records) + "]",
        },
    )


def index(experiments: list[dict[str, Any]], benchmarks: list[dict[str, Any]]) -> str:
    """Return the page over all experiments (see `sq.report.index`)."""
    data = {"experiments": experiments, "benchmarks": benchmarks}
    body = _templates().get_template("index.html").render()
    return _page("Results - sq", body, ("index.js",), head={}, blocks={"index": embed(data)})


def tiles(summary: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Return what a page says of all runs together: label, value, note."""

    def some(values: list[str], most: int = 3) -> str:
        return ", ".join(values[:most]) + (
            f" and {len(values) - most} more" if len(values) > most else ""
        )

    failed = f"{summary['failed']} failed" if summary["failed"] else "none failed"
    hours = summary["seconds"] / 3600
    every = [
        ("Runs", f"{summary['done']} done", failed),
        ("Models", some(summary["models"]), some(summary["datasets"])),
        ("Methods", some(summary["methods"], 6), ""),
        ("Seeds", str(len(summary["seeds"])), some(summary["seeds"], 6)),
        ("Time of all runs", f"{hours:.1f} h" if hours >= 1 else f"{hours * 60:.1f} min", ""),
        (
            "Commits",
            some([c[:8] for c in summary["commits"]]),
            "with changes not committed" if summary["dirty"] else "",
        ),
        ("Machines", str(len(summary["machines"])), some(summary["machines"], 2)),
    ]
    return [(label, value, note) for label, value, note in every if value not in ("", "0")]


def embed(data: Any) -> str:
    """Return `data` as JSON that may stand in a page."""
    return inert(json.dumps(data, separators=(",", ":"), ensure_ascii=False))


def inert(text: str) -> str:
    """Return JSON without what could end its script element: an error may well quote ``</script>``."""
    return text.replace("<", "\\u003c")


def _page(
    title: str, body: str, scripts: tuple[str, ...], *, head: dict[str, str], blocks: dict[str, str]
) -> str:
    own = "\n".join(_asset(name) for name in (*COMMON, *scripts))
    script = f'(() => {{\n"use strict";\n{own}\n}})();'
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
