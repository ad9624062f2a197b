"""Summary of a benchmark's measurements: totals over the network, ratios, and growth of time."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from sq.report.rows import values

Measurement = dict[str, Any]
Size = tuple[int, int]  # rows and columns of a layer

# Operations for a layer of r rows and c columns, in leading orders, by the quantizer's choice.
THEORY: dict[str, tuple[str, Callable[[int, int], float]]] = {
    "rtn": ("r c", lambda r, c: r * c),
    "gptq": ("c^3 + r c^2", lambda r, c: c**3 + r * c**2),
    "brevitas_gptq": ("c^3 + r c^2", lambda r, c: c**3 + r * c**2),
    "sensiquant": ("c^3 + r c^2", lambda r, c: c**3 + r * c**2),
    "sensiquant_plus": ("c^3 + r c^2", lambda r, c: c**3 + r * c**2),
    "textbook_obq": ("r c^3", lambda r, c: r * c**3),
    "obq": ("r c^3", lambda r, c: r * c**3),
}


def distinct(measurements: list[Measurement], name: str) -> list[Any]:
    """Return the values of field `name`, each once, in the order in which they were measured."""
    return list(dict.fromkeys(values(measurements, name)))


def error(measurement: Measurement) -> float:
    """Return the relative error of all the rows that were solved."""
    errors = measurement["errors"]  # by number of rows
    return errors[max(errors, key=int)]


def error_ratio(first: Measurement, second: Measurement) -> float | None:
    """Return the error of `first` over that of `second`, on the rows that both have solved.

    None where one of the errors is 0.
    """
    shared = set(first["errors"]) & set(second["errors"])
    if not shared:
        return None
    rows = max(shared, key=int)
    numerator, denominator = first["errors"][rows], second["errors"][rows]
    if min(numerator, denominator) <= 0:
        return None
    return numerator / denominator


def totals(measurements: list[Measurement], reference: str) -> list[dict[str, Any]]:
    """Return, for each quantizer and bit-width, its seconds over all layers and the speed-up.

    Every shape counts as often as the network has it. Errors and their ratios are geometric means
    over layers, so that no layer outweighs the others by its size.

    Parameters
    ----------
    reference : the quantizer that speed-ups and error ratios are over
    """
    lines = []
    for quantizer in distinct(measurements, "quantizer"):
        for bits in distinct(measurements, "bits"):
            members = _select(measurements, quantizer, bits)
            baseline = {m["layer"]: m for m in _select(measurements, reference, bits)}
            lines.append({"quantizer": quantizer, "bits": bits} | _total(members, baseline))
    return lines


def _total(members: list[Measurement], baseline: dict[str, Measurement]) -> dict[str, Any]:
    """Return the totals over the layers of one quantizer and bit-width; `baseline` is by layer."""
    baseline_seconds = []
    errors: list[tuple[int, float | None]] = []
    ratios: list[tuple[int, float | None]] = []
    for measurement in members:
        count = measurement["count"]
        other = baseline[measurement["layer"]]
        baseline_seconds.append(count * other["seconds"])
        errors.append((count, error(measurement)))
        ratios.append((count, error_ratio(measurement, other)))
    extrapolated = [measurement for measurement in members if measurement["extrapolated"]]
    seconds = _network_sum(members, "seconds")
    return {
        "layers": sum(values(members, "count")),
        "seconds": seconds,
        "extrapolated_seconds": _network_sum(extrapolated, "seconds"),
        "fit_seconds": _network_sum(members, "fit_seconds"),
        "speedup": sum(baseline_seconds) / seconds,
        "relative_error": _geometric_mean(errors),
        "error_ratio": _geometric_mean(ratios),
    }


def _network_sum(measurements: list[Measurement], name: str) -> float:
    """Return the sum of a figure over the network, each shape as often as the network has it."""
    return sum(measurement["count"] * measurement[name] for measurement in measurements)


def exponents(measurements: list[Measurement]) -> list[dict[str, Any]]:
    """Return, for each quantizer, how its seconds and its operations grow with rows and columns.

    Both are power laws fitted to the same layers, those without groups: c^3 + r c^2 is no power
    law, but the two fits compare. Bit-widths are averaged. An exponent is None where the layers do
    not determine it.
    """
    lines = []
    for quantizer in distinct(measurements, "quantizer"):
        sizes, seconds = points(measurements, quantizer)
        rows, columns = power_law(sizes, seconds)
        first = next(m for m in measurements if m["quantizer"] == quantizer)
        choice = first["choice"].rsplit("/", 1)[-1]  # without its folder in conf/quantizer
        formula = "-"
        expected: tuple[float | None, float | None] = (None, None)
        if choice in THEORY:
            formula, operations = THEORY[choice]
            expected = power_law(sizes, [operations(*size) for size in sizes])
        lines.append(
            {
                "quantizer": quantizer,
                "layers": len(sizes),
                "rows": rows,
                "columns": columns,
                "operations": formula,
                "rows_expected": expected[0],
                "columns_expected": expected[1],
            }
        )
    return lines


def points(measurements: list[Measurement], quantizer: str) -> tuple[list[Size], list[float]]:
    """Return the sizes of layers without groups, and a quantizer's mean seconds over bit-widths."""
    seconds: dict[str, list[float]] = {}
    sizes: dict[str, Size] = {}
    for measurement in measurements:
        if measurement["quantizer"] == quantizer and measurement["groups"] == 1:
            layer = measurement["layer"]
            sizes[layer] = (measurement["outputs"], measurement["inputs"])
            seconds.setdefault(layer, []).append(measurement["seconds"])
    means = [sum(times) / len(times) for times in seconds.values()]
    return list(sizes.values()), means


def power_law(sizes: list[Size], seconds: list[float]) -> tuple[float | None, float | None]:
    """Fit seconds = k rows^a columns^b by least squares in logarithms; return a and b.

    An axis along which layers do not differ is left out and its exponent is None. Both are None
    where layers are too few, or rows and columns change together.
    """
    import numpy as np

    if not sizes or min(seconds) <= 0:
        return None, None
    logs = np.log(np.array(sizes, dtype=float))  # (layers, 2)
    varies = [len(set(axis)) > 1 for axis in zip(*sizes, strict=True)]  # rows, columns
    # log seconds = log k + a log rows + b log columns, without the terms of equal sizes
    A = np.column_stack([np.ones(len(sizes)), logs[:, varies]])
    if not any(varies) or len(sizes) < A.shape[1] or np.linalg.matrix_rank(A) < A.shape[1]:
        return None, None
    solution = np.linalg.lstsq(A, np.log(np.array(seconds)), rcond=None)[0]
    exponents: list[float | None] = [None, None]
    for axis, exponent in zip(np.flatnonzero(varies), solution[1:], strict=True):  # after log k
        exponents[axis] = float(exponent)
    return exponents[0], exponents[1]


def _select(measurements: list[Measurement], quantizer: str, bits: int) -> list[Measurement]:
    """Return the measurements of one quantizer and bit-width."""
    return [m for m in measurements if m["quantizer"] == quantizer and m["bits"] == bits]


def _geometric_mean(weighted: list[tuple[int, float | None]]) -> float | None:
    """Return the geometric mean of the positive numbers, each with its weight; None without any."""
    counts, logs = [], []
    for count, value in weighted:
        if value is not None and value > 0:
            counts.append(count)
            logs.append(count * math.log(value))
    if not counts:
        return None
    return math.exp(sum(logs) / sum(counts))
