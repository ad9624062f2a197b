"""Cache of statistics on disk: a sweep over methods and bits collects them once.

The key of an entry (`sq.storage.store`) is a hash of all that its content depends on: weights,
architecture, images, settings, and the code that collects.
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

# Read when the code is imported: if a file is edited while a sweep runs, results of the old code
# must not get the key of the new code.
CODE = [inspect.getsource(module) for module in (layer_statistics, batching, gram, geometry)]


def collect(model: Model, batch: Batch, storage: Store, **settings: Any) -> tuple[Statistics, bool]:
    """Return the statistics of `layer_statistics.collect`, and whether they were in the store."""

    def make() -> tuple[Tensors, Note]:
        statistics = layer_statistics.collect(model, batch, **settings)
        hessians, positions = {}, {}
        for name, layer in statistics.layers.items():
            hessians[name] = layer.hessian
            positions[name] = layer.positions
        return hessians, {"images": statistics.images, "positions": positions}

    device = next(model.net.parameters()).device
    entry = key(model, batch, settings, storage.origin)
    hessians, note, cached = storage.get_or_compute(entry, kind(model), make, device)
    layers = {}
    for name, hessian in hessians.items():
        layers[name] = LayerStatistics(hessian, note["positions"][name])
    return Statistics(layers, note["images"]), cached


def kind(model: Model) -> Kind:
    """Return what an entry holds: the Hessian and positions of each layer, and how many images."""
    names = [layer.name for layer in model.layers]

    def fits(note: Note) -> bool:
        return isinstance(note["images"], int) and [*note["positions"].keys()] == names

    return Kind("statistics", "collecting them", names, fits)


def key(model: Model, batch: Batch, settings: dict[str, Any], origin: Any) -> str:
    """Return the key of an entry: a hash of all that statistics depend on, to the last bit."""
    if settings["positions"] == 1:
        settings = settings | {"seed": None}  # nothing is drawn
    code, state = store.describe(model)
    sizes = [(layer.name, layer.groups, layer.outputs, layer.inputs) for layer in model.layers]
    parts = [
        *CODE,
        *code,
        repr(sizes),
        *state,
        digest([batch.x]),
        json.dumps([settings, origin], sort_keys=True),
        store.rounding(batch.x.device),
    ]
    return store.name(parts)
