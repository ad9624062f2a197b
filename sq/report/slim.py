"""Records as a report reads them: layers in compact columns, so that 10,000 runs of 60 layers fit in memory and a page.

As parsed they would take gigabytes; kept are 5 figures of each layer, about 15 bytes each in the
page.
"""

from __future__ import annotations

import json
import operator
from typing import Any

from sq.records.record import Record
from sq.report import prices
from sq.report.distinct import share

SHAPE = ("name", "kind", "groups", "outputs", "inputs", "weights")  # what runs of one network share
FIGURES = (
    "bits",
    "activation_bits",
    "relative_error",
    "solve_seconds",
    "damp_used",
    "damp_retries",
    "dead_inputs",
)
NAMES = (*SHAPE, *FIGURES)
_get = operator.itemgetter(*NAMES)


class Slim:
    """Call it on each record: it keeps what reports need.

    Attributes
    ----------
    shapes : those of layers, a column for each of `SHAPE`, once for each network; in order
    """

    def __init__(self) -> None:
        self.shapes: dict[tuple, int] = {}
        self._priced: set[str] = set()
        self._parts: dict[str, dict[str, Any]] = {}

    def __call__(self, record: Record) -> Record:
        """Return `record` with `columns` (JSON, see `_columns`) for its layers, prices once for those of one origin.

        Bits that an allocation chose stay at hand as `widths`, by layer name. The time when it
        `started` stands apart from the rest of its provenance, which many runs share.
        """
        if "started" in record.get("provenance", {}):
            record["started"] = record["provenance"].pop("started")
        for part in (record.get("config", {}), record):  # what many runs have alike is kept once
            for name, value in part.items():
                if value.__class__ is dict and name not in (
                    "results",
                    "seconds",
                    "sensitivity",
                    "config",
                ):
                    part[name] = share(value, self._parts)
        if "layers" in record:
            if record.get("allocation"):
                record["widths"] = share(
                    {own["name"]: own["bits"] for own in record["layers"]}, self._parts
                )
            record["columns"] = self._columns(record.pop("layers"))
        if record["status"] == "done" and "sensitivity" in record:
            priced = prices.origin(record)
            if priced in self._priced:  # the tables of prices take each once
                del record["sensitivity"]
            self._priced.add(priced)
        return record

    def _columns(self, layers: list[dict[str, Any]]) -> str:
        """Return ``[shape, bits, activation bits, errors, seconds, rare]``; bits as one number if all are alike.

        `shape` is a place in `shapes`; `rare` has, by name, the layers where a figure is not 0;
        errors are relative output errors, seconds those of the solver, both with 3 digits.
        """
        try:
            found = [_get(own) for own in layers]
        except KeyError:  # rare, and slower: a quantizer that leaves no such figure
            found = [tuple(own.get(name) for name in NAMES) for own in layers]
        *shape, bits, inputs, errors, seconds, damps, retries, dead = (
            zip(*found, strict=True) if found else [()] * len(NAMES)
        )
        index = self.shapes.setdefault(tuple(shape), len(self.shapes))
        rare: dict[str, dict[int, Any]] = {}
        if any(retries):
            rare["damp_retries"] = {i: value for i, value in enumerate(retries) if value}
            rare["damp_used"] = {i: damps[i] for i in rare["damp_retries"]}
        if any(dead):
            rare["dead_inputs"] = {i: value for i, value in enumerate(dead) if value}
        parts = (
            _one_or_all(bits),
            _one_or_all(inputs),
            _numbers(errors),
            _numbers(seconds),
            json.dumps(rare),
        )
        return f"[{index},{','.join(parts)}]"


def _one_or_all(values: tuple) -> str:
    return json.dumps(values[0] if len(set(values)) == 1 else values, separators=(",", ":"))


def _numbers(values: tuple) -> str:
    if None in values:
        return "[" + ",".join("null" if v is None else f"{v:.3g}" for v in values) + "]"
    return "[" + ",".join(["%.3g"] * len(values)) % values + "]"
