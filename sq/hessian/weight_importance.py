"""Importance h of weights: the cost of a squared error of each, for grids that use it as a weight.

It is computed once for a run. A grid asks for it with a function ``importance(*, knobs)`` beside
its `fit`, with the same knobs, that returns None or a function ``compute(model, x, *, images, ...)
-> h (G, O, I) by layer name, draws``.
"""

from __future__ import annotations

import inspect
import json
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor

from sq.hessian import label_free_scores
from sq.network import derivatives, per_sample_gradients
from sq.runtime import monte_carlo
from sq.storage import store
from sq.storage.store import Kind, Note, Store, Tensors
from sq.types.images import Batch
from sq.types.problem import Fit, Model, digest

# Read when the code is imported, as in `sq.hessian.cache`.
CODE = [
    inspect.getsource(module)
    for module in (label_free_scores, per_sample_gradients, monte_carlo, derivatives)
]


def collect(
    fit: Fit, model: Model, batch: Batch, storage: Store
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return h (G, O, I) by layer name, and a part of the record; both empty if `fit` needs no h.

    Parameters
    ----------
    fit : of a grid, with its knobs bound
    storage : keeps h for other runs
    """
    compute = requested(fit)
    if compute is None:
        return {}, {}
    x = batch.x[: compute.keywords["images"]]

    def make() -> tuple[Tensors, Note]:
        h, draws = compute(model, x)
        return h, {"draws": draws}

    def fits(note: Note) -> bool:
        return isinstance(note["draws"], int)

    names = [layer.name for layer in model.layers]
    kind = Kind("importance of weights", "computing it", names, fits)
    entry = key(model, x, compute, storage.origin)
    h, note, cached = storage.get_or_compute(entry, kind, make, x.device)
    return h, {"importance": {"images": len(x), "draws": note["draws"], "cached": cached}}


def requested(fit: Fit) -> partial | None:
    """Return the function that computes h for the grid; None if the grid needs no h."""
    function = getattr(fit, "func", fit)
    module = sys.modules.get(function.__module__)
    importance: Callable[..., partial | None] | None = getattr(module, "importance", None)
    if importance is None:
        return None
    return importance(**getattr(fit, "keywords", {}))


def key(model: Model, x: Tensor, compute: partial, origin: Any) -> str:
    """Return the key of an entry: a hash of all that h depends on, to the last bit."""
    code, state = store.describe(model)
    sizes = [(layer.name, layer.groups, layer.outputs, layer.inputs) for layer in model.layers]
    settings = [f"{compute.func.__module__}.{compute.func.__name__}", compute.keywords, origin]
    parts = [
        *CODE,
        *code,
        repr(sizes),
        *state,
        digest([x]),
        json.dumps(settings, sort_keys=True),
        store.rounding(x.device),
    ]
    return store.name(parts)
