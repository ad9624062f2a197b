"""What a benchmark's measurements come to: totals over the network, ratios, and exponents of time."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

Measurement = dict[str, Any]
Size = tuple[int, int]  # rows and columns of a layer

# Operations for a layer of r rows and c columns, to the leading orders; by the quantizer's choice.
THEORY: dict[str, tuple[str, Callable[[int, int], float]]] = {
    "rtn": ("r c", lambda r, c: r * c),
    "gptq": ("c^3 + r c^2", lambda r, c: c**3 + r * c**2),
    "brevitas_gptq": ("c^3 + r c^2", lambda r, c: c**3 + r * c**2),
    "sensiquant": ("c^3 + r c^2", lambda r, c: c**3 + r * c**2),
    "sensiquant_plus": ("c^3 + r c^2", lambda r, c: c**3 + r * c**2),
    "textbook_obq": ("r c^3", lambda r, c: r * c**3),
    "obq": ("r c^3", lambda r, c: r * c**3),
}


def distinct(measurements: list[Measurement], what: str) -> list[Any]:
    """Return the values of `what`, each once, in the order in which they were measured."""
    return list(dict.fromkeys(m[what] for m in measurements))


def error(measurement: Measurement) -> float:
    """Return the relative error of all the rows that were solved."""
    return measurement["errors"][max(measurement["errors"], key=int)]


def error_ratio(one: Measurement, other: Measurement) -> float | None:
    """Return the error of `one` over that of `other`, of the rows that both have solved; None where one is 0."""
    shared = set(one["errors"]) & set(other["errors"])
    rows = max(shared, key=int) if shared else None
    if rows is None or min(one["errors"][rows], other["errors"][rows]) <= 0:
        return None
    return one["errors"][rows] / other["errors"][rows]


def totals(measurements: list[Measurement], reference: str) -> list[dict[str, Any]]:
    """Return, for each quantizer and bit-width, seconds over all layers and what they are to the reference's.

    Every shape counts as often as the network has it. Errors and their ratios are geometric means
    over layers, so that no layer outweighs the others by its size.
    """
    found = []
    for label in distinct(measurements, "quantizer"):
        for bits in distinct(measurements, "bits"):
            own = _of(measurements, label, bits)
            yardstick = {m["layer"]: m for m in _of(measurements, reference, bits)}
            seconds = sum(m["count"] * m["seconds"] for m in own)
            their = sum(m["count"] * yardstick[m["layer"]]["seconds"] for m in own)
            ratios = [(m["count"], error_ratio(m, yardstick[m["layer"]])) for m in own]
            found.append(
                {
                    "quantizer": label,
                    "bits": bits,
                    "layers": sum(m["count"] for m in own),
                    "seconds": seconds,
                    "extrapolated_seconds": sum(
                        m["count"] * m["seconds"] for m in own if m["extrapolated"]
                    ),
                    "fit_seconds": sum(m["count"] * m["fit_seconds"] for m in own),
                    "speedup": their / seconds,
                    "relative_error": _geometric([(m["count"], error(m)) for m in own]),
                    "error_ratio": _geometric(ratios),
                }
            )
    return found


def exponents(measurements: list[Measurement]) -> list[dict[str, Any]]:
    """Return, for each quantizer, how its seconds grow with rows and columns, and how its operations should.

    Both are power laws fitted to the same layers (those without groups), so that they compare
    though c^3 + r c^2 is none. Bit-widths are averaged. An exponent is None where layers do not
    tell.
    """
    found = []
    for label in distinct(measurements, "quantizer"):
        sizes, seconds = points(measurements, label)
        choice = next(m["choice"] for m in measurements if m["quantizer"] == label).rsplit("/", 1)[
            -1
        ]
        formula, operations = THEORY.get(choice, ("-", None))
        expected = (
            power_law(sizes, [operations(*size) for size in sizes]) if operations else (None, None)
        )
        rows, columns = power_law(sizes, seconds)
        found.append(
            {
                "quantizer": label,
                "layers": len(sizes),
                "rows": rows,
                "columns": columns,
                "operations": formula,
                "rows_expected": expected[0],
                "columns_expected": expected[1],
            }
        )
    return found


def points(measurements: list[Measurement], label: str) -> tuple[list[Size], list[float]]:
    """Return the sizes of the layers without groups, and a quantizer's seconds there, bit-widths averaged."""
    seconds: dict[str, list[float]] = {}
    sizes: dict[str, Size] = {}
    for m in measurements:
        if m["quantizer"] == label and m["groups"] == 1:
            sizes[m["layer"]] = (m["outputs"], m["inputs"])
            seconds.setdefault(m["layer"], []).append(m["seconds"])
    return list(sizes.values()), [sum(s) / len(s) for s in seconds.values()]


def power_law(sizes: list[Size], seconds: list[float]) -> tuple[float | None, float | None]:
    """Fit seconds = k rows^a columns^b by least squares in logarithms; return a and b.

    An axis along which layers do not differ is left out and its exponent is None. Both are None
    where layers are too few, or rows and columns change together.
    """
    import numpy as np

    if not sizes or min(seconds) <= 0:
        return None, None
    logs = np.log(np.array(sizes, dtype=float))
    varies = [len(set(column)) > 1 for column in zip(*sizes, strict=True)]
    A = np.column_stack([np.ones(len(sizes)), logs[:, varies]])
    if not any(varies) or len(sizes) < A.shape[1] or np.linalg.matrix_rank(A) < A.shape[1]:
        return None, None
    fitted = iter(np.linalg.lstsq(A, np.log(np.array(seconds)), rcond=None)[0][1:])
    rows, columns = (float(next(fitted)) if own else None for own in varies)
    return rows, columns


def _of(measurements: list[Measurement], label: str, bits: int) -> list[Measurement]:
    return [m for m in measurements if m["quantizer"] == label and m["bits"] == bits]


def _geometric(values: list[tuple[int, float | None]]) -> float | None:
    """Return the weighted geometric mean of those values that are positive, None if there is none."""
    positive = [(count, value) for count, value in values if value is not None and value > 0]
    if not positive:
        return None
    return math.exp(sum(n * math.log(v) for n, v in positive) / sum(n for n, _ in positive))
