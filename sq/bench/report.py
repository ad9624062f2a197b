"""The tables and figures of a benchmark, from its record alone and the same to the byte each time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from sq.errors import SqError
from sq.records import record
from sq.report import benchmark_summary
from sq.report.benchmark_summary import Measurement

CSV = (
    "layer",
    "kind",
    "groups",
    "outputs",
    "inputs",
    "count",
    "quantizer",
    "bits",
    "seconds",
    "seconds_min",
)


def build(file: Path) -> list[Path]:
    """Write tables (Markdown, CSV) and figures (SVG, PDF) beside the record `file`; return the files.

    Raises
    ------
    SqError : no record, a damaged one, or a folder that cannot be written
    """
    made = record.read(file)
    if made is None:
        raise SqError(f"no record {file}: run the benchmark first")
    if "measurements" not in made:
        raise SqError(f"{file} is not a benchmark's record: delete it, and run the benchmark again")
    from sq.bench import figure
    from sq.report.style import save

    found, reference = made["measurements"], made["config"]["reference"]
    texts = {
        "table.md": markdown(found, reference),
        "totals.csv": _csv(benchmark_summary.totals(found, reference)),
        "exponents.csv": _csv(benchmark_summary.exponents(found)),
        "layers.csv": _csv([_flat(m) for m in found]),
    }
    folder, files = file.parent, []
    try:
        for name, text in texts.items():
            (folder / name).write_text(text)
            files.append(folder / name)
        files += save(figure.scaling(found), folder / "scaling")
        files += save(figure.tradeoff(found, reference), folder / "tradeoff")
    except OSError as error:
        raise SqError(f"cannot write to {folder}: {error.strerror}") from error
    return files


def markdown(found: list[Measurement], reference: str) -> str:
    """Return all tables as one page: totals, exponents, then seconds and errors of each layer."""
    labels = benchmark_summary.distinct(found, "quantizer")
    parts = [
        ("Totals", f"All layers, each shape as often as the network has it; speed-up and error ratio over {reference}.",
         [_total(row) for row in benchmark_summary.totals(found, reference)]),
        ("Growth", "seconds = k rows^a columns^b, fitted to the layers without groups; in brackets the same fit to "
         "the number of operations.", [_exponent(row) for row in benchmark_summary.exponents(found)]),
        ("Seconds of a layer", "Median over repeats; ~ extrapolated from a sample of rows.",
         _by_layer(found, labels, _seconds)),
        ("Relative error of a layer", "Of the rows that were solved.", _by_layer(found, labels, _error)),
    ]  # fmt: skip
    return "\n".join(f"## {title}\n\n{note}\n\n{_table(rows)}\n" for title, note, rows in parts)


def _total(row: dict[str, Any]) -> dict[str, str]:
    mark = "~" if row["extrapolated_seconds"] else ""
    return {
        "quantizer": row["quantizer"],
        "bits": str(row["bits"]),
        "solve s": mark + _number(row["seconds"], ".4g"),
        "speed-up": _number(row["speedup"], ".3g", "x"),
        "rel. error": _number(row["relative_error"], ".3e"),
        "error ratio": _number(row["error_ratio"], ".3f"),
        "fit s": _number(row["fit_seconds"], ".3g"),
    }


def _exponent(row: dict[str, Any]) -> dict[str, str]:
    return {
        "quantizer": row["quantizer"],
        "layers": str(row["layers"]),
        "rows^": f"{_number(row['rows'], '.2f')} ({_number(row['rows_expected'], '.2f')})",
        "columns^": f"{_number(row['columns'], '.2f')} ({_number(row['columns_expected'], '.2f')})",
        "operations": row["operations"],
    }


def _by_layer(
    found: list[Measurement], labels: list[str], cell: Callable[[Measurement], str]
) -> list[dict[str, str]]:
    lines: dict[tuple[str, int], dict[str, str]] = {}
    for m in found:
        size = {
            name: str(m[name])
            for name in ("layer", "kind", "count", "groups", "outputs", "inputs", "bits")
        }
        lines.setdefault((m["layer"], m["bits"]), size | dict.fromkeys(labels, "-"))[
            m["quantizer"]
        ] = cell(m)
    return list(lines.values())


def _seconds(m: Measurement) -> str:
    return ("~" if m["extrapolated"] else "") + f"{m['seconds']:.4g}"


def _error(m: Measurement) -> str:
    return f"{benchmark_summary.error(m):.3e}"


def _flat(m: Measurement) -> dict[str, Any]:
    rows = max(m["errors"], key=int)
    own = {name: m[name] for name in CSV} | {
        "repeats": " ".join(f"{s:.6g}" for s in m["seconds_all"])
    }
    own |= {
        "extrapolated": m["extrapolated"],
        "rows_solved": int(rows),
        "relative_error": benchmark_summary.error(m),
    }
    own |= {name: m[name] for name in ("fit_seconds", "damp_used", "damp_retries")}
    return own | {f"peak_{name}": size for name, size in m["peak_bytes"].items()}


def _table(rows: list[dict[str, str]]) -> str:
    import pandas

    return pandas.DataFrame(rows).to_markdown(index=False, disable_numparse=True)


def _csv(rows: list[dict[str, Any]]) -> str:
    import pandas

    return pandas.DataFrame(rows).to_csv(index=False, float_format="%.6g")


def _number(value: float | None, form: str, unit: str = "") -> str:
    return "-" if value is None else f"{value:{form}}{unit}"
