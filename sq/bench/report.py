"""The tables and figures of a benchmark, built from its record alone, identical in each build."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sq.errors import SqError
from sq.records import record
from sq.report import benchmark_summary
from sq.report.benchmark_summary import Measurement
from sq.report.style import STYLE, line_style, pyplot, save

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MARKER = 4  # points
LAYER_FIELDS = ("layer", "kind", "count", "groups", "outputs", "inputs", "bits")
CSV_FIELDS = (
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
    """Write tables and figures beside the record `file`; return the files.

    Tables are in Markdown and CSV, figures in SVG and PDF.

    Raises
    ------
    SqError : no record, a damaged one, or a folder that cannot be written
    """
    run = record.read(file)
    if run is None:
        raise SqError(f"no record {file}: run the benchmark first")
    if "measurements" not in run:
        raise SqError(f"{file} is not a benchmark's record: delete it, and run the benchmark again")
    measurements, reference = run["measurements"], run["config"]["reference"]
    texts = {
        "table.md": markdown(measurements, reference),
        "totals.csv": _csv(benchmark_summary.totals(measurements, reference)),
        "exponents.csv": _csv(benchmark_summary.exponents(measurements)),
        "layers.csv": _csv([_csv_line(measurement) for measurement in measurements]),
    }
    folder = file.parent
    files = []
    try:
        for name, text in texts.items():
            (folder / name).write_text(text)
            files.append(folder / name)
        files += save(scaling(measurements), folder / "scaling")
        files += save(tradeoff(measurements, reference), folder / "tradeoff")
    except OSError as error:
        raise SqError(f"cannot write to {folder}: {error.strerror}") from error
    return files


def markdown(measurements: list[Measurement], reference: str) -> str:
    """Return all tables as one page: totals, exponents, then seconds and errors of each layer."""
    totals = benchmark_summary.totals(measurements, reference)
    exponents = benchmark_summary.exponents(measurements)
    parts = [
        _part(
            "Totals",
            "All layers, each shape as often as the network has it; "
            f"speed-up and error ratio over {reference}.",
            [_total(total) for total in totals],
        ),
        _part(
            "Growth",
            "seconds = k rows^a columns^b, fitted to the layers without groups; "
            "in brackets the same fit to the number of operations.",
            [_exponent(exponent) for exponent in exponents],
        ),
        _part(
            "Seconds of a layer",
            "Median over repeats; ~ extrapolated from a sample of rows.",
            _by_layer(measurements, _seconds),
        ),
        _part(
            "Relative error of a layer",
            "Of the rows that were solved.",
            _by_layer(measurements, _error),
        ),
    ]
    return "\n".join(parts)


def _part(title: str, note: str, lines: list[dict[str, str]]) -> str:
    """Return a table of text cells in Markdown, with its title and a note."""
    import pandas

    table = pandas.DataFrame(lines).to_markdown(index=False, disable_numparse=True)
    return f"## {title}\n\n{note}\n\n{table}\n"


def _total(total: dict[str, Any]) -> dict[str, str]:
    """Return the cells of a quantizer at one bit-width."""
    mark = "~" if total["extrapolated_seconds"] else ""  # of one layer at least
    return {
        "quantizer": total["quantizer"],
        "bits": str(total["bits"]),
        "solve s": mark + _number(total["seconds"], ".4g"),
        "speed-up": _number(total["speedup"], ".3g", "x"),
        "rel. error": _number(total["relative_error"], ".3e"),
        "error ratio": _number(total["error_ratio"], ".3f"),
        "fit s": _number(total["fit_seconds"], ".3g"),
    }


def _exponent(law: dict[str, Any]) -> dict[str, str]:
    """Return the cells of a quantizer's growth with rows and columns."""
    rows = _number(law["rows"], ".2f")
    rows_expected = _number(law["rows_expected"], ".2f")
    columns = _number(law["columns"], ".2f")
    columns_expected = _number(law["columns_expected"], ".2f")
    return {
        "quantizer": law["quantizer"],
        "layers": str(law["layers"]),
        "rows^": f"{rows} ({rows_expected})",
        "columns^": f"{columns} ({columns_expected})",
        "operations": law["operations"],
    }


def _by_layer(
    measurements: list[Measurement], cell: Callable[[Measurement], str]
) -> list[dict[str, str]]:
    """Return a line for each layer and bit-width, with a cell for each quantizer."""
    quantizers = benchmark_summary.distinct(measurements, "quantizer")
    lines: dict[tuple[str, int], dict[str, str]] = {}
    for measurement in measurements:
        key = (measurement["layer"], measurement["bits"])
        if key not in lines:
            lines[key] = {name: str(measurement[name]) for name in LAYER_FIELDS}
            lines[key] |= dict.fromkeys(quantizers, "-")
        lines[key][measurement["quantizer"]] = cell(measurement)
    return list(lines.values())


def _seconds(measurement: Measurement) -> str:
    mark = "~" if measurement["extrapolated"] else ""
    return f"{mark}{measurement['seconds']:.4g}"


def _error(measurement: Measurement) -> str:
    return f"{benchmark_summary.error(measurement):.3e}"


def _csv_line(measurement: Measurement) -> dict[str, Any]:
    """Return the fields of a measurement in one flat line."""
    line = {name: measurement[name] for name in CSV_FIELDS}
    line["repeats"] = " ".join(map("{:.6g}".format, measurement["seconds_all"]))
    line["extrapolated"] = measurement["extrapolated"]
    line["rows_solved"] = max(map(int, measurement["errors"]))
    line["relative_error"] = benchmark_summary.error(measurement)
    for name in ("fit_seconds", "damp_used", "damp_retries"):
        line[name] = measurement[name]
    for memory, size in measurement["peak_bytes"].items():
        line[f"peak_{memory}"] = size
    return line


def _csv(lines: list[dict[str, Any]]) -> str:
    import pandas

    return pandas.DataFrame(lines).to_csv(index=False, float_format="%.6g")


def _number(value: float | None, form: str, unit: str = "") -> str:
    return "-" if value is None else f"{value:{form}}{unit}"


def scaling(measurements: list[Measurement]) -> Figure:
    """Draw seconds against columns and against rows, a marker for each layer.

    Hollow markers are extrapolated.
    """
    plt = pyplot()
    layers = [m["layer"] for m in measurements if m["groups"] == 1]
    sampled = {(m["layer"], m["quantizer"]) for m in measurements if m["extrapolated"]}
    with plt.rc_context(STYLE):
        figure, (by_columns, by_rows) = plt.subplots(
            1, 2, figsize=(7.2, 3.6), layout="constrained", sharey=True
        )
        for index, law in enumerate(benchmark_summary.exponents(measurements)):
            quantizer = law["quantizer"]
            style = line_style(index, MARKER) | {"linestyle": "none"}
            sizes, seconds = benchmark_summary.points(measurements, quantizer)
            points = list(zip(dict.fromkeys(layers), sizes, seconds, strict=True))
            for axes, axis in ((by_columns, 1), (by_rows, 0)):  # of a size: rows, columns
                for layer, size, value in points:
                    is_hollow = (layer, quantizer) in sampled
                    style["markerfacecolor"] = "none" if is_hollow else style["color"]
                    axes.plot([size[axis]], [value], label="_", **style)  # not in the legend
            style["markerfacecolor"] = style["color"]
            by_columns.plot([], [], label=_legend(law), **style)
        by_columns.set(xlabel="columns", ylabel="solve time of a layer (s)", yscale="log")
        by_rows.set(xlabel="rows")
        for axes in (by_columns, by_rows):
            axes.set_xscale("log", base=2)  # sizes of layers are mostly powers of two
            axes.xaxis.set_major_formatter("{x:g}")
        if sampled:
            by_rows.set_title("hollow: extrapolated from a sample of rows", fontsize=8, loc="right")
        figure.legend(
            *by_columns.get_legend_handles_labels(),
            loc="outside lower center",
            ncols=2,
            frameon=False,
            fontsize=7,
        )
    return figure


def tradeoff(measurements: list[Measurement], reference: str) -> Figure:
    """Draw the error of each quantizer, mean over layers, against its seconds for all of them."""
    plt = pyplot()
    totals: dict[str, list[dict[str, Any]]] = {}  # by quantizer
    for total in benchmark_summary.totals(measurements, reference):
        totals.setdefault(total["quantizer"], []).append(total)
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(4.6, 3.4), layout="constrained")
        for index, (quantizer, lines) in enumerate(totals.items()):
            points = [line for line in lines if line["relative_error"] is not None]
            _draw_tradeoff(axes, points, line_style(index, MARKER) | {"label": quantizer})
        axes.set(
            xlabel="solve time (s), all layers",
            ylabel="relative output error",
            xscale="log",
            yscale="log",
        )
        axes.set_title("numbers at the points: bits", fontsize=8, loc="right")
        axes.legend(frameon=False, fontsize=7)
    return figure


def _draw_tradeoff(axes: Axes, points: list[dict[str, Any]], style: dict[str, Any]) -> None:
    """Draw the line of one quantizer, with bits at its points."""
    seconds = [point["seconds"] for point in points]
    errors = [point["relative_error"] for point in points]
    axes.plot(seconds, errors, **style)
    for point, x, y in zip(points, seconds, errors, strict=True):
        axes.annotate(f"{point['bits']}", (x, y), (4, 4), textcoords="offset points", fontsize=7)


def _legend(law: dict[str, Any]) -> str:
    """Return the quantizer with its fitted exponents, and in brackets those of its operations."""
    parts = []
    for axis in ("rows", "columns"):
        if law[axis] is None:
            continue
        text = f"{axis}^{law[axis]:.2f}"
        if law[f"{axis}_expected"] is not None:
            text += f" ({law[f'{axis}_expected']:.2f})"
        parts.append(text)
    return ": ".join([law["quantizer"], " ".join(parts)]) if parts else law["quantizer"]
