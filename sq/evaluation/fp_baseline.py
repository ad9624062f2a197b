"""Full precision, measured once for all runs of one process that share network, images and settings.

A sweep over methods and bits would otherwise spend half its time on the same figures. They are
never read from elsewhere: whoever starts a process measures full precision in it, with the code and
on the machine of its runs.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from sq.evaluation.evaluate import Evaluation, Measured
from sq.types.images import Dataset
from sq.types.problem import Model, digest

# settings that it depends on
SHAPING = ("model", "dataset", "metric", "fold", "batch_size", "device", "threads")

_last: tuple[str, Measured] | None = None  # one is enough: sweeps change the network last of all


def measure(
    config: Mapping[str, Any], model: Model, dataset: Dataset, evaluation: Evaluation
) -> tuple[Measured, bool]:
    """Return what `evaluation` measures of the full-precision network, and whether this process knew it already."""
    global _last
    parts = [{name: config[name] for name in SHAPING}, dataset.name, dataset.test.ids]
    weights = digest(model.net.state_dict().values())
    key = hashlib.sha256(json.dumps([parts, weights]).encode()).hexdigest()
    if _last is None or _last[0] != key:
        _last = key, evaluation.measure(model.net)
        return _last[1], False
    return _last[1], True
