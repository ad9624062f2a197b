"""Forward passes with one layer changed at a time, as measured sensitivities need them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from sq.core.progress import track
from sq.network import hooks
from sq.network.prefix_replay import Replay
from sq.network.rounding_sites import Kind, Sites
from sq.network.weight_swap import original_weight, swapped_weights
from sq.runtime import batching, out_of_memory
from sq.types.problem import Layer, Model

# Bytes of the outputs that a recorded pass stores; batches are smaller if they would take more.
RECORDED_BYTES = 2**30

# figure(outputs, reference, positions) -> (B,), a value of each image; `positions` says which of
# all images these are
Figure = Callable[[Tensor, Tensor, slice], Tensor]


@dataclass(frozen=True)
class Change:
    """Another weight, ``put(own weight)``, or other inputs, ``put(x)``, of one layer."""

    kind: Kind
    layer: Layer
    put: Callable[[Tensor], Tensor]

    @contextmanager
    def applied(self, model: Model) -> Iterator[None]:
        """Let the network of `model` compute with this change."""
        if self.kind == "weights":
            with torch.no_grad():
                weight = self.put(original_weight(self.layer))
            with swapped_weights(model, {self.layer.name: weight}):
                yield
        else:
            modules = {self.layer.name: self.layer.module}
            with hooks.replacing(modules, lambda name, module, x: self.put(x)):
                yield


class ChangedOutputs(NamedTuple):
    """The network's outputs for some images with one change."""

    change: int  # its number
    positions: slice  # of these images among all
    outputs: Tensor
    reference: Tensor  # outputs without any change


def rounding_changes(sites: Sites) -> list[Change]:
    """Return every layer rounded to nearest at every width, in the order of `sites.choices`."""

    def rounding(layer: Layer, bits: int) -> Callable[[Tensor], Tensor]:
        return lambda values: sites.nearest(layer, bits, values)

    return [Change(sites.kind, layer, rounding(layer, bits)) for layer, bits in sites.choices()]


class ChangePasses:
    """The passes of a network over images `x` (B, C, H, W) with each of `changes`.

    The reference is the network as it is: weights that are swapped already stay so, except for the
    changed layer's.
    """

    def __init__(self, model: Model, changes: Sequence[Change], x: Tensor):
        self.model = model
        self.changes = changes
        self.x = x
        layers = {change.layer.name: change.layer for change in changes}
        self.replay = Replay(model.net, layers.values(), x[:1])
        largest = RECORDED_BYTES // max(1, self.replay.bytes)
        # images at a time
        self.size = max(1, min(batching.images_per_pass(x.shape[1:], None), largest))

    def each(
        self, size: int, around: Callable[[], AbstractContextManager[object]] = nullcontext
    ) -> Iterator[ChangedOutputs]:
        """Yield the outputs for each batch of `size` images and each change.

        Each pass, and what is done with its result, runs within a context ``around()``.
        """
        batches = self.x.split(size)
        steps = itertools.product(range(len(batches)), range(len(self.changes)))
        total = len(batches) * len(self.changes)
        with self.replay.watching():
            for batch_number, number in track(steps, "sensitivity", total):
                batch = batches[batch_number]
                if number == 0:
                    reference = self.replay.record(batch)
                change, start = self.changes[number], batch_number * size
                with around(), change.applied(self.model):
                    outputs = self.replay.again(batch, change.layer)
                    positions = slice(start, start + len(outputs))
                    yield ChangedOutputs(number, positions, outputs, reference)


def measure(model: Model, changes: Sequence[Change], x: Tensor, figure: Figure) -> list[float]:
    """Return the mean of `figure` over images `x` (B, C, H, W) with each change alone."""
    passes = ChangePasses(model, changes, x)

    def attempt(size: int) -> list[float]:
        totals = [0.0] * len(changes)
        for result in passes.each(size):
            values = figure(result.outputs, result.reference, result.positions)
            totals[result.change] += float(values.sum())
        return [total / len(x) for total in totals]

    return out_of_memory.fitting("sensitivity", attempt, passes.size)
