"""Rebuild an experiment's tables, figures and page from its records: ``python -m sq.report NAME``.

The index over all experiments is rebuilt each time; ``--index`` rebuilds it alone.
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
    import pandas

    from sq.report.page import Contents


def parser(prog: str) -> argparse.ArgumentParser:
    """Return the parser of its command line."""
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Rebuild an experiment's tables, figures and page, "
        "and the index over all experiments.",
    )
    parser.add_argument("name", nargs="?", help="the experiment, a folder of results/")
    parser.add_argument(
        "--results", type=Path, default=Path("results"), help="where records are (default: results)"
    )
    parser.add_argument(
        "--experiments",
        type=Path,
        default=FOLDER,
        help="the folder of experiments, whose questions pages show (default: sq's own)",
    )
    parser.add_argument(
        "--into", type=Path, metavar="FILE", help="also put the table between its marks in FILE"
    )
    parser.add_argument(
        "--index", action="store_true", help="without a name: rebuild results/index.html only"
    )
    return parser


@closed_pipe.quiet
def main(arguments: list[str] | None = None, prog: str = "python -m sq.report") -> int:
    """Parse the command line, build, return the exit code."""
    command = parser(prog)
    options = command.parse_args(arguments)
    if bool(options.name) == options.index or (options.into and not options.name):
        command.error("the name of an experiment, or --index alone")
    try:
        files = _build(options)
    except SqError as error:
        say(f"sq: {error}")
        return 1
    for file in files:
        say(str(file))
    return 0


def _build(options: argparse.Namespace) -> list[Path]:
    """Build what the command line asks for; return the files."""
    if options.into:
        split_at_marks(options.into, options.name)  # refuses the file before anything is written
    if options.name:
        files = build(options.name, options.results, options.experiments)
    else:
        files = [index(options.results, options.experiments)]
    if options.into:
        insert(options.into, options.name, _table(options.results / options.name))
        files.append(options.into)
    return files


def build(name: str, results: Path, questions: Path = FOLDER) -> list[Path]:
    """Write the report of an experiment, and the index of all; return the files, the index last."""
    return [*report(name, results, questions), index(results, questions)]


def report(name: str, results: Path, questions: Path = FOLDER) -> list[Path]:
    """Write tables, figures and page of experiment `name`; return the files.

    Tables are in Markdown, LaTeX and CSV, figures in SVG and PDF. Without a finished run there are
    no tables and figures; the page lists the failures.

    Parameters
    ----------
    results : the folder of records
    questions : the folder of experiments, whose headers say what the page is about

    Raises
    ------
    SqError : no such experiment, no record in it, a damaged one, or a folder that cannot be written
    """
    folder = record.folder(name, results)
    # Not at the top: --help is quick without the modules of tables and figures.
    from sq.report.slim import Slim

    slim = Slim()
    records = record.read_all(folder, slim)
    try:
        return _write(records, list(slim.shapes), folder, experiments.listed(questions))
    except OSError as error:
        raise SqError(f"cannot write to {folder}: {error.strerror}") from error


def index(results: Path, questions: Path = FOLDER) -> Path:
    """Write the index of all experiments from the summaries in their pages; return the file.

    Raises
    ------
    SqError : no such folder, a damaged record of a benchmark, or a folder that cannot be written
    """
    from sq.report.index import PAGE
    from sq.report.index import build as index_page

    if not results.is_dir():
        raise SqError(f"no folder {results}: run an experiment first, or correct --results")
    write_text(results / PAGE, index_page(results, experiments.listed(questions)))
    return results / PAGE


def _table(folder: Path) -> str:
    """Return the table of a reported experiment, in Markdown."""
    file = folder / "table.md"
    if not file.is_file():
        raise SqError(
            f"{folder} holds failed runs only: there is no table; run the experiment again"
        )
    return file.read_text()


def insert(file: Path, name: str, table: str) -> None:
    """Put `table` into `file`, between ``<!-- table: NAME -->`` and ``<!-- end -->``.

    The file is written whole or not at all.

    Raises
    ------
    SqError : `file` cannot be read or written, or has no such marks
    """
    before, after = split_at_marks(file, name)
    # Resolved, so that a link is kept, and the file it leads to is written.
    write_text(file.resolve(), f"{before}\n{table}\n{after}")


def split_at_marks(file: Path, name: str) -> tuple[str, str]:
    """Return `file` up to and with the first mark of table `name`, and from the second mark on.

    Raises
    ------
    SqError : see `insert`
    """
    try:
        text = file.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise SqError(
            f"{file} cannot be read ({one_line(error)}): it should be a text file, with marks"
        ) from error
    start, end = f"<!-- table: {name} -->\n", "<!-- end -->"
    before, has_start, rest = text.partition(start)
    _, has_end, after = rest.partition(end)
    if not has_start or not has_end:
        raise SqError(f"{file} has no marks {start.strip()} and {end} to put the table between")
    return before + start, end + after


def _write(
    records: list[record.Record], shapes: list[tuple], folder: Path, questions: list[Experiment]
) -> list[Path]:
    """Write the report of `records` into `folder`; return the files, the page last."""
    from sq.report import claims, index, page, table

    finished = [run for run in records if run["status"] == "done"]
    rows = table.rows(finished)
    contents = page.Contents(
        name=folder.name,
        headers=page.headers(folder.name, questions),
        records=records,
        shapes=shapes,
        rows=rows,
        table=None,
        claims=None,
        files=[],
    )
    files: list[Path] = []
    if finished:
        contents.table = table.cells(rows)
        contents.claims = claims.table(finished, claims.read(folder.parent))
        files = [*_write_tables(contents, finished, folder), *_write_figures(contents, folder)]
    # The page links to the other files, so it is written last.
    contents.files = [file.name for file in files]
    write_text(folder / index.PAGE, page.experiment(contents, index.summary(contents)))
    return [*files, folder / index.PAGE]


def _write_tables(contents: Contents, finished: list[record.Record], folder: Path) -> list[Path]:
    """Write the tables; return the files."""
    from sq.report import exports, latency, latex, learning, mixed, pairs

    rows, records = contents.rows, contents.records
    tables = {
        "table": contents.table,
        "correlation": mixed.correlations(records),
        "learning": learning.table(rows, records),
        "pairs": pairs.table(rows, records),
        "exports": exports.table(rows, records),
        "latency": latency.table(rows, records),
    }
    texts = {"table.csv": _csv(finished)}
    for name, table in tables.items():
        if table is not None:
            texts[f"{name}.md"] = _markdown(table)
            texts[f"{name}.tex"] = latex.tabular(table)
    if contents.claims is not None and len(contents.claims):
        texts["claims.md"] = _markdown(contents.claims)
    texts |= _sensitivity_texts(records)
    texts |= latency.layers(records)
    for name, text in texts.items():
        write_text(folder / name, text)
    return [folder / name for name in texts]


def _markdown(table: pandas.DataFrame) -> str:
    """Return a table of text cells in Markdown."""
    return table.to_markdown(index=False, disable_numparse=True) + "\n"


def _sensitivity_texts(records: list[record.Record]) -> dict[str, str]:
    """Return the tables of sensitivities in CSV and Markdown, by name of the file."""
    from sq.report import sensitivities

    texts = {}
    for name, costs in sensitivities.tables(records).items():
        stem = sensitivities.stem(name)
        texts[f"{stem}.csv"] = costs.to_csv(index_label="layer", float_format="%.6g")
        with_gaps = costs.astype(object).where(costs.notna(), None)  # None is shown as "-"
        texts[f"{stem}.md"] = with_gaps.to_markdown(floatfmt=".2e", missingval="-") + "\n"
    return texts


def _write_figures(contents: Contents, folder: Path) -> list[Path]:
    """Write the figures; return the files."""
    from sq.report import figure, style

    files = []
    for stem, drawn in figure.all_figures(contents.rows, contents.records):
        files += style.save(drawn, folder / stem)
    return files


def _csv(records: list[record.Record]) -> str:
    """Return one CSV line a record, for a reader's own analysis: its settings and every figure."""
    import pandas

    lines = []
    for run in records:
        line = {
            "key": run["key"],
            **run["choices"],
            "bits": run["config"]["bits"],
            "seed": run["config"]["seed"],
        }
        line.pop("tracker", None)
        figures = dict(run["results"])
        mean_bits = figures.pop("bits")  # "bits" is the setting
        lines.append(line | figures | {"mean_bits": mean_bits})
    table = pandas.DataFrame(lines).sort_values(["quantizer", "bits", "seed", "key"])
    return table.to_csv(index=False)


if __name__ == "__main__":
    sys.exit(main())
