"""Rebuild an experiment's tables, figures and page from its records: ``python -m sq.report NAME``.

The index over all experiments is made anew each time; ``--index`` makes it alone.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from sq.core import closed_pipe
from sq.core.files import write_text
from sq.core.progress import say
from sq.errors import SqError, one_line
from sq.records import experiments, record
from sq.records.experiments import FOLDER, Experiment

if TYPE_CHECKING:
    from sq.report.page import Contents


def parser(prog: str) -> argparse.ArgumentParser:
    """Return the parser of its command line."""
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Rebuild an experiment's tables, figures and page, and the index over all experiments.",
    )
    parser.add_argument("name", nargs="?", help="the experiment, a folder of results/")
    parser.add_argument(
        "--results", type=Path, default=Path("results"), help="where records are (default: results)"
    )
    parser.add_argument(
        "--experiments",
        type=Path,
        default=FOLDER,
        help="where the questions are (default: sq's own)",
    )
    parser.add_argument(
        "--into", type=Path, metavar="FILE", help="also put the table between its marks in FILE"
    )
    parser.add_argument(
        "--index", action="store_true", help="without a name: rebuild results/index.html, no more"
    )
    return parser


@closed_pipe.quiet
def main(words: list[str] | None = None, prog: str = "python -m sq.report") -> int:
    """Parse the command line, build, return the exit code."""
    own = parser(prog)
    options = own.parse_args(words)
    if bool(options.name) == options.index or (options.into and not options.name):
        own.error("the name of an experiment, or --index alone")
    try:
        where = options.results, options.experiments
        if options.into:
            around(options.into, options.name)  # before anything is written
        files = build(options.name, *where) if options.name else [index(*where)]
        if options.into:
            insert(options.into, options.name, _table(options.results / options.name))
            files.append(options.into)
    except SqError as error:
        say(f"sq: {error}")
        return 1
    for file in files:
        say(str(file))
    return 0


def build(name: str, results: Path, questions: Path = FOLDER) -> list[Path]:
    """Write what `report` does, and the index of all experiments; return the files, the index last."""
    return [*report(name, results, questions), index(results, questions)]


def report(name: str, results: Path, questions: Path = FOLDER) -> list[Path]:
    """Write tables (Markdown, LaTeX, CSV), figures (SVG, PDF) and page of experiment `name`; return the files.

    Without a finished run there are no tables and figures; the page lists the failures.

    Parameters
    ----------
    results : the folder of records
    questions : the folder of experiments, whose headers say what the page is about

    Raises
    ------
    SqError : no such experiment, no record in it, a damaged one, or a folder that cannot be written
    """
    folder = record.folder(name, results)
    from sq.report.slim import Slim

    slim = Slim()
    records = record.read_all(folder, slim)
    try:
        return _write(records, list(slim.shapes), folder, experiments.listed(questions))
    except OSError as error:
        raise SqError(f"cannot write to {folder}: {error.strerror}") from error


def index(results: Path, questions: Path = FOLDER) -> Path:
    """Write the index of all experiments from what their pages say; return the file.

    Raises
    ------
    SqError : no such folder, a damaged record of a benchmark, or a folder that cannot be written
    """
    from sq.report.index import PAGE
    from sq.report.index import build as drawn

    if not results.is_dir():
        raise SqError(f"no folder {results}: run an experiment first, or correct --results")
    write_text(results / PAGE, drawn(results, experiments.listed(questions)))
    return results / PAGE


def _table(folder: Path) -> str:
    file = folder / "table.md"
    if not file.is_file():
        raise SqError(
            f"{folder} holds failed runs only: there is no table; run the experiment again"
        )
    return file.read_text()


def insert(file: Path, name: str, table: str) -> None:
    """Put `table` into `file`, between the marks ``<!-- table: NAME -->`` and ``<!-- end -->``; whole or not at all.

    Raises
    ------
    SqError : `file` cannot be read or written, or has no such marks
    """
    before, after = around(file, name)
    write_text(file.resolve(), f"{before}\n{table}\n{after}")  # what a link leads to, not the link


def around(file: Path, name: str) -> tuple[str, str]:
    """Return what stands in `file` up to the first mark of table `name`, and from the second on; see `insert`."""
    try:
        text = file.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise SqError(
            f"{file} cannot be read ({one_line(error)}): it should be a text file, with marks"
        ) from error
    mark, end = f"<!-- table: {name} -->\n", "<!-- end -->"
    before, found, rest = text.partition(mark)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise SqError(f"{file} has no marks {mark.strip()} and {end} to put the table between")
    return before + mark, end + after


def _write(
    records: list[record.Record], shapes: list[tuple], folder: Path, questions: list[Experiment]
) -> list[Path]:
    from sq.report import claims, experiment, index, page, table

    done = [r for r in records if r["status"] == "done"]
    rows = table.rows(done)
    own = page.Contents(
        name=folder.name,
        headers=experiment.headers(folder.name, questions),
        records=records,
        shapes=shapes,
        rows=rows,
        table=table.cells(rows) if done else None,
        claims=claims.table(done, claims.read(folder.parent)) if done else None,
        files=[],
    )
    files = [*_texts(own, folder), *_figures(own, folder)] if done else []
    own.files = [file.name for file in files]
    write_text(folder / index.PAGE, page.experiment(own, index.summary(own)))
    return [*files, folder / index.PAGE]


def _texts(own: Contents, folder: Path) -> list[Path]:
    """Write the tables."""
    from sq.report import exports, latency, latex, learning, mixed, pairs, prices

    assert own.table is not None
    tables = {
        "table": own.table,
        "correlation": mixed.correlations(own.records),
        "learning": learning.table(own.rows, own.records),
        "pairs": pairs.table(own.rows, own.records),
        "exports": exports.table(own.rows, own.records),
        "latency": latency.table(own.rows, own.records),
    }
    texts = {"table.csv": _long([r for r in own.records if r["status"] == "done"])}
    for name, found in tables.items():
        if found is not None:
            texts[f"{name}.md"] = found.to_markdown(index=False, disable_numparse=True) + "\n"
            texts[f"{name}.tex"] = latex.tabular(found)
    if own.claims is not None and len(own.claims):
        texts["claims.md"] = own.claims.to_markdown(index=False, disable_numparse=True) + "\n"
    for name, cost in prices.tables(own.records).items():
        texts[f"{prices.stem(name)}.csv"] = cost.to_csv(index_label="layer", float_format="%.6g")
        told = cost.astype(object).where(cost.notna(), None)
        texts[f"{prices.stem(name)}.md"] = told.to_markdown(floatfmt=".2e", missingval="-") + "\n"
    texts |= latency.layers(own.records)
    for file, text in texts.items():
        write_text(folder / file, text)
    return [folder / file for file in texts]


def _figures(own: Contents, folder: Path) -> list[Path]:
    """Draw the figures."""
    from sq.report import figure, style

    return [
        file
        for stem, drawn in figure.every(own.rows, own.records)
        for file in style.save(drawn, folder / stem)
    ]


def _long(records: list[record.Record]) -> str:
    """Return one CSV line a record, for a reader's own analysis: settings that matter and every figure."""
    import pandas

    lines = []
    for r in records:
        head = {
            "key": r["key"],
            **r["choices"],
            "bits": r["config"]["bits"],
            "seed": r["config"]["seed"],
        }
        head.pop("tracker", None)
        lines.append(
            head
            | {k: v for k, v in r["results"].items() if k != "bits"}
            | {"mean_bits": r["results"]["bits"]}
        )
    return (
        pandas.DataFrame(lines)
        .sort_values(["quantizer", "bits", "seed", "key"])
        .to_csv(index=False)
    )


if __name__ == "__main__":
    sys.exit(main())
