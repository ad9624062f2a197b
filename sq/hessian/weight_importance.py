"""Importance: what a squared error of each weight costs, for grids that weigh errors by it; computed once for a run.

A grid asks by an ``importance(*, knobs) -> weigh or None`` beside its `fit`, with the knobs of
`fit`, and ``weigh(model, x, *, images, ...) -> h (G, O, I) by layer name, draws`` is what computes
it.
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

# Read along with the code itself, as in `sq.hessian.cache`.
CODE = [
    inspect.getsource(module)
    for module in (label_free_scores, per_sample_gradients, monte_carlo, derivatives)
]


def collect(
    fit: Fit, model: Model, batch: Batch, kept: Store
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return h (G, O, I) by layer name, and what a record says of it; both are empty if `fit` does not ask for it.

    Parameters
    ----------
    fit : of a grid, with its knobs bound
    kept : where h is kept for other runs
    """
    weigh = asked(fit)
    if weigh is None:
        return {}, {}
    x = batch.x[: weigh.keywords["images"]]

    def make() -> tuple[Tensors, Note]:
        h, made = weigh(model, x)
        return h, {"draws": made}

    names = [layer.name for layer in model.layers]
    kind = Kind(
        "importance of weights", "computing it", names, lambda note: isinstance(note["draws"], int)
    )
    h, note, there = kept.get_or_compute(key(model, x, weigh, kept.origin), kind, make, x.device)
    return h, {"importance": {"images": len(x), "draws": note["draws"], "cached": there}}


def asked(fit: Fit) -> partial | None:
    """Return what the grid wants h computed by, None if it takes none."""
    function = getattr(fit, "func", fit)
    ask: Callable[..., partial | None] | None = getattr(
        sys.modules.get(function.__module__), "importance", None
    )
    return ask(**getattr(fit, "keywords", {})) if ask else None


def key(model: Model, x: Tensor, weigh: partial, origin: Any) -> str:
    """Return the name of an entry: a hash of all that h depends on, to the last bit."""
    code, state = store.describe(model)
    sizes = [(layer.name, layer.groups, layer.outputs, layer.inputs) for layer in model.layers]
    settings = [f"{weigh.func.__module__}.{weigh.func.__name__}", weigh.keywords, origin]
    told = json.dumps(settings, sort_keys=True)
    return store.name(
        [*CODE, *code, repr(sizes), *state, digest([x]), told, store.rounding(x.device)]
    )
