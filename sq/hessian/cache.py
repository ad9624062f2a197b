"""Statistics on disk: a sweep over methods and bits collects them once.

An entry (`sq.storage.store`) is named by everything that shapes it: weights, architecture, images,
settings, the code that collects.
"""

from __future__ import annotations

import inspect
import json
from typing import Any

from sq.hessian import gram, layer_statistics
from sq.network import geometry
from sq.runtime import batching
from sq.storage import store
from sq.storage.store import Kind, Note, Store, Tensors
from sq.types.images import Batch
from sq.types.problem import LayerStatistics, Model, Statistics, digest

# Read along with the code itself: an edit while a sweep runs must not name what the old code
# computes.
CODE = [inspect.getsource(module) for module in (layer_statistics, batching, gram, geometry)]


def collect(model: Model, batch: Batch, kept: Store, **settings: Any) -> tuple[Statistics, bool]:
    """Return the statistics of `layer_statistics.collect(model, batch, **settings)`, and whether the store had them."""

    def make() -> tuple[Tensors, Note]:
        own = layer_statistics.collect(model, batch, **settings)
        positions = {name: layer.positions for name, layer in own.layers.items()}
        return {name: layer.hessian for name, layer in own.layers.items()}, {
            "images": own.images,
            "positions": positions,
        }

    device = next(model.net.parameters()).device
    hessians, note, there = kept.get_or_compute(
        key(model, batch, settings, kept.origin), kind(model), make, device
    )
    own = {
        name: LayerStatistics(hessian, note["positions"][name])
        for name, hessian in hessians.items()
    }
    return Statistics(own, note["images"]), there


def kind(model: Model) -> Kind:
    """Return what an entry holds: a Hessian and the number of positions for each layer, and the number of images."""
    names = [layer.name for layer in model.layers]

    def fits(note: Note) -> bool:
        return isinstance(note["images"], int) and [*note["positions"].keys()] == names

    return Kind("statistics", "collecting them", names, fits)


def key(model: Model, batch: Batch, settings: dict[str, Any], origin: Any) -> str:
    """Return the name of an entry: a hash of all that statistics depend on, to the last bit."""
    if settings["positions"] == 1:
        settings = settings | {"seed": None}  # nothing is drawn
    code, state = store.describe(model)
    parts = [
        *CODE,
        *code,
        repr([(layer.name, layer.groups, layer.outputs, layer.inputs) for layer in model.layers]),
        *state,
        digest([batch.x]),
        json.dumps([settings, origin], sort_keys=True),
        store.rounding(batch.x.device),
    ]
    return store.name(parts)
