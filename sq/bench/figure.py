"""The figures of a benchmark, in the house style of `sq.report.style`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sq.report import benchmark_summary
from sq.report.benchmark_summary import Measurement
from sq.report.style import STYLE, look, pyplot

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MARKER = 4  # points


def scaling(found: list[Measurement]) -> Figure:
    """Draw seconds against columns and against rows, one marker a layer; hollow ones are extrapolated."""
    plt = pyplot()
    with plt.rc_context(STYLE):
        figure, (left, right) = plt.subplots(
            1, 2, figsize=(7.2, 3.6), layout="constrained", sharey=True
        )
        sampled = {(m["layer"], m["quantizer"]) for m in found if m["extrapolated"]}
        layers = [m["layer"] for m in found if m["groups"] == 1]
        for index, law in enumerate(benchmark_summary.exponents(found)):
            sizes, seconds = benchmark_summary.points(found, law["quantizer"])
            names = dict.fromkeys(layers)
            own = look(index, MARKER) | {"linestyle": "none", "label": _legend(law)}
            for axes, column in ((left, 1), (right, 0)):
                for name, size, value in zip(names, sizes, seconds, strict=True):
                    face = "none" if (name, law["quantizer"]) in sampled else own["color"]
                    axes.plot(
                        [size[column]], [value], **{**own, "markerfacecolor": face, "label": "_"}
                    )
            left.plot([], [], **{**own, "markerfacecolor": own["color"]})
        left.set(xlabel="columns", ylabel="solve time of a layer (s)", yscale="log")
        right.set(xlabel="rows")
        for axes in (left, right):
            axes.set_xscale("log", base=2)
            axes.xaxis.set_major_formatter("{x:g}")
        if sampled:
            right.set_title("hollow: extrapolated from a sample of rows", fontsize=8, loc="right")
        figure.legend(
            *left.get_legend_handles_labels(),
            loc="outside lower center",
            ncols=2,
            frameon=False,
            fontsize=7,
        )
    return figure


def tradeoff(found: list[Measurement], reference: str) -> Figure:
    """Draw the error of a quantizer, mean over layers, against its seconds for all of them."""
    plt = pyplot()
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(4.6, 3.4), layout="constrained")
        rows = benchmark_summary.totals(found, reference)
        for index, label in enumerate(dict.fromkeys(row["quantizer"] for row in rows)):
            own = [
                row
                for row in rows
                if row["quantizer"] == label and row["relative_error"] is not None
            ]
            x, y = [row["seconds"] for row in own], [row["relative_error"] for row in own]
            axes.plot(x, y, **look(index, MARKER), label=label)
            for row in own:
                point = (row["seconds"], row["relative_error"])
                axes.annotate(
                    f"{row['bits']}", point, (4, 4), textcoords="offset points", fontsize=7
                )
        axes.set(
            xlabel="solve time (s), all layers",
            ylabel="relative output error",
            xscale="log",
            yscale="log",
        )
        axes.set_title("numbers at the points: bits", fontsize=8, loc="right")
        axes.legend(frameon=False, fontsize=7)
    return figure


def _legend(law: dict[str, Any]) -> str:
    """Return the quantizer with its fitted exponents, and in brackets those of its number of operations."""
    parts = []
    for axis in ("rows", "columns"):
        if law[axis] is not None:
            expected = law[f"{axis}_expected"]
            parts.append(
                f"{axis}^{law[axis]:.2f}" + (f" ({expected:.2f})" if expected is not None else "")
            )
    return ": ".join([law["quantizer"], " ".join(parts)]) if parts else law["quantizer"]
