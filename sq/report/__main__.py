"""Rebuild an experiment's tables and figures from its records: ``python -m sq.report NAME``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from sq import record
from sq.console import say
from sq.errors import SqError


def main(words: list[str] | None = None) -> int:
    """Parse the command line, build, return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m sq.report", description=__doc__)
    parser.add_argument("name", help="the experiment, a folder of results/")
    parser.add_argument("--results", type=Path, default=Path("results"), help="where records are (default: results)")
    parser.add_argument("--into", type=Path, metavar="FILE", help="also put the table between its marks in FILE")
    options = parser.parse_args(words)
    try:
        files = build(options.name, options.results)
        if options.into:
            insert(options.into, options.name, (options.results / options.name / "table.md").read_text())
            files.append(options.into)
    except SqError as error:
        say(f"sq: {error}")
        return 1
    for file in files:
        say(str(file))
    return 0


def build(name: str, results: Path) -> list[Path]:
    """Write the tables (Markdown, LaTeX, CSV) and figures (SVG, PDF) of experiment `name`; return the files.

    Raises
    ------
    SqError : no such experiment, no finished run in it, a damaged record, or a folder that cannot be written
    """
    folder = record.folder(name, results)
    records = [r for r in record.read_all(folder) if r["status"] == "done"]
    if not records:
        raise SqError(f"{folder} holds failed runs only: run the experiment again")
    try:
        return _write(records, folder)
    except OSError as error:
        raise SqError(f"cannot write to {folder}: {error.strerror}") from error


def insert(file: Path, name: str, table: str) -> None:
    """Put `table` into `file`, between the marks ``<!-- table: NAME -->`` and ``<!-- end -->``.

    Raises
    ------
    SqError : `file` has no such marks
    """
    text = file.read_text()
    before, mark, rest = text.partition(f"<!-- table: {name} -->\n")
    _, end, after = rest.partition("<!-- end -->")
    if not mark or not end:
        raise SqError(f"{file} has no marks <!-- table: {name} --> and <!-- end --> to put the table between")
    file.write_text(f"{before}{mark}\n{table}\n{end}{after}")


def _write(records: list[record.Record], folder: Path) -> list[Path]:
    from sq.report import claims, figure, table

    main_table = table.build(records)
    texts = {
        "table.md": main_table.to_markdown(index=False, disable_numparse=True) + "\n",
        "table.tex": main_table.style.hide(axis="index")
        .to_latex(hrules=True)
        .replace("+-", r"$\pm$")
        .replace("%", r"\%"),
        "table.csv": _long(records),
    }
    published = claims.table(records, claims.read(folder.parent))
    if len(published):
        texts["claims.md"] = published.to_markdown(index=False, disable_numparse=True) + "\n"
    for model, cost in table.sensitivity(records).items():
        texts[f"sensitivity_{model}.csv"] = cost.to_csv(index_label="layer", float_format="%.6g")
        texts[f"sensitivity_{model}.md"] = cost.to_markdown(floatfmt=".2e") + "\n"
    files = []
    for file, text in texts.items():
        (folder / file).write_text(text)
        files.append(folder / file)
    for stem, drawn in figure.every(records):
        files += figure.save(drawn, folder / stem)
    return files


def _long(records: list[record.Record]) -> str:
    """Return one CSV line a record, for a reader's own analysis: settings that matter and every figure."""
    import pandas

    lines = []
    for r in records:
        head = {"key": r["key"], **r["choices"], "bits": r["config"]["bits"], "seed": r["config"]["seed"]}
        head.pop("tracker", None)
        lines.append(
            head | {k: v for k, v in r["results"].items() if k != "bits"} | {"mean_bits": r["results"]["bits"]}
        )
    return pandas.DataFrame(lines).sort_values(["quantizer", "bits", "seed", "key"]).to_csv(index=False)


if __name__ == "__main__":
    sys.exit(main())
