"""Measure full precision once for all runs of a process with the same network, images and settings.

A sweep over methods and bits would otherwise spend half its time on the same figures. They are
never read from a file: every process measures them with the code and on the machine of its runs.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from sq.evaluation.evaluate import Measured, NetworkEvaluator
from sq.types.images import Dataset
from sq.types.problem import Model, digest

# Settings that the result depends on.
RELEVANT_SETTINGS = ("model", "dataset", "metric", "fold", "batch_size", "device", "threads")


class BaselineCache:
    """The last full-precision result. One is enough: sweeps change the network last of all."""

    def __init__(self) -> None:
        self._key = ""
        self._result: Measured | None = None

    def measure(
        self,
        config: Mapping[str, Any],
        model: Model,
        dataset: Dataset,
        evaluator: NetworkEvaluator,
    ) -> tuple[Measured, bool]:
        """Return the full-precision result, and whether this cache had it already."""
        settings = {name: config[name] for name in RELEVANT_SETTINGS}
        weights = digest(model.net.state_dict().values())
        parts = [[settings, dataset.name, dataset.test.ids], weights]
        key = hashlib.sha256(json.dumps(parts).encode()).hexdigest()
        if self._result is not None and self._key == key:
            return self._result, True
        self._result = evaluator.measure(model.net)
        self._key = key
        return self._result, False


# Shared by all runs of this process.
process_cache = BaselineCache()
