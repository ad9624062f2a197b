"""Records reduced to what reports need: layers in compact columns, shared parts of configs once.

10,000 runs of 60 layers would take gigabytes as parsed. Five figures of each layer are kept, about
15 bytes each in the page.
"""

from __future__ import annotations

import json
import operator
from typing import Any

from sq.records.record import Record
from sq.report import sensitivities
from sq.report.distinct import share

SHAPE = ("name", "kind", "groups", "outputs", "inputs", "weights")  # equal in runs of one network
FIGURES = (
    "bits",
    "activation_bits",
    "relative_error",
    "solve_seconds",
    "damp_used",
    "damp_retries",
    "dead_inputs",
)
FIELDS = (*SHAPE, *FIGURES)
NOT_SHARED = ("results", "seconds", "sensitivity", "config")  # parts that differ from run to run
_get = operator.itemgetter(*FIELDS)


class Slim:
    """Call it on each record: it keeps what reports need.

    Attributes
    ----------
    shapes : those of the layers of each distinct network, as columns of `SHAPE`, with their index
    """

    def __init__(self) -> None:
        self.shapes: dict[tuple, int] = {}
        self._origins: set[str] = set()  # of sensitivities that were met
        self._parts: dict[str, dict[str, Any]] = {}  # by text, parts of records that were met

    def __call__(self, record: Record) -> Record:
        """Reduce `record` in place and return it.

        Layers become `columns` (JSON, see `_columns`). Sensitivities stay in the first record of
        each origin only. Bits that an allocation chose stay at hand as `widths`, by layer name. The
        time when it `started` is moved out of its provenance, which many runs then share.
        """
        if "started" in record.get("provenance", {}):
            record["started"] = record["provenance"].pop("started")
        self._share_parts(record.get("config", {}))
        self._share_parts(record)
        if "layers" in record:
            if record.get("allocation"):
                widths = {layer["name"]: layer["bits"] for layer in record["layers"]}
                record["widths"] = share(widths, self._parts)
            record["columns"] = self._columns(record.pop("layers"))
        if record["status"] == "done" and "sensitivity" in record:
            origin = sensitivities.origin(record)
            if origin in self._origins:
                del record["sensitivity"]
            self._origins.add(origin)
        return record

    def _share_parts(self, mapping: dict[str, Any]) -> None:
        """Replace each dict in `mapping` by an equal one of an earlier record, if there is one."""
        for name, value in mapping.items():
            if value.__class__ is dict and name not in NOT_SHARED:
                mapping[name] = share(value, self._parts)

    def _columns(self, layers: list[dict[str, Any]]) -> str:
        """Return ``[shape, bits, activation bits, errors, seconds, rare]`` of all layers, as JSON.

        `shape` is an index into `shapes`. Bits are one number if all are alike. Errors are relative
        output errors, and seconds those of the solver, both with 3 digits. `rare` has by name the
        layers whose figure is not 0.
        """
        try:
            table = [_get(layer) for layer in layers]
        except KeyError:  # slower, and rare: a quantizer that leaves no such figure
            table = [tuple(map(layer.get, FIELDS)) for layer in layers]
        columns = zip(*table, strict=True) if table else [()] * len(FIELDS)
        *shape, bits, activation_bits, errors, seconds, damps, retries, dead = columns
        index = self.shapes.setdefault(tuple(shape), len(self.shapes))
        rare: dict[str, dict[int, Any]] = {}
        if any(retries):
            rare["damp_retries"] = _nonzero(retries)
            rare["damp_used"] = {layer: damps[layer] for layer in rare["damp_retries"]}
        if any(dead):
            rare["dead_inputs"] = _nonzero(dead)
        parts = (
            str(index),
            _one_or_all(bits),
            _one_or_all(activation_bits),
            _numbers(errors),
            _numbers(seconds),
            json.dumps(rare),
        )
        return f"[{','.join(parts)}]"


def _nonzero(values: tuple) -> dict[int, Any]:
    """Return the values that are not 0, by index of the layer."""
    return {layer: value for layer, value in enumerate(values) if value}


def _one_or_all(values: tuple) -> str:
    """Return a column as JSON: one number if all are alike."""
    column = values[0] if len(set(values)) == 1 else values
    return json.dumps(column, separators=(",", ":"))


def _numbers(values: tuple) -> str:
    """Return a column of numbers with 3 digits as JSON."""
    if None in values:
        texts = ["null" if value is None else f"{value:.3g}" for value in values]
        return "[" + ",".join(texts) + "]"
    # One format operation for all numbers: there are millions of them in 10,000 runs.
    return "[" + ",".join(["%.3g"] * len(values)) % values + "]"
