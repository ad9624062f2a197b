"""Layers changed one at a time, and what that does to a network's outputs: the forward passes of measured prices."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from sq.core.progress import track
from sq.network.prefix_replay import Replay
from sq.network.rounding_sites import Kind, Sites, changed
from sq.runtime import batching, out_of_memory
from sq.types.problem import Layer, Model

KEPT = 2**30  # bytes of a recorded pass; fewer images go together where their outputs would be more

# figure(outputs, reference, place) -> (B,): of each image, `place` being where these images are
# among all
Figure = Callable[[Tensor, Tensor, slice], Tensor]


@dataclass(frozen=True)
class Change:
    """Another weight, ``put(own weight)``, or other inputs, ``put(x)``, of one layer."""

    kind: Kind
    layer: Layer
    put: Callable[[Tensor], Tensor]


class Seen(NamedTuple):
    """What the network made of some images with one change."""

    change: int  # its number
    place: slice  # of the images among all
    outputs: Tensor
    reference: Tensor  # outputs without any change


def rounding(sites: Sites) -> list[Change]:
    """Return every layer rounded to nearest at every width, in the order of `sites.choices`."""

    def put(layer: Layer, bits: int) -> Callable[[Tensor], Tensor]:
        return lambda values: sites.nearest(layer, bits, values)

    return [Change(sites.kind, layer, put(layer, bits)) for layer, bits in sites.choices()]


class Runs:
    """The passes of a network over images `x` (B, C, H, W) that `changes` ask for.

    What the network is then is the reference: weights that are lent stay so, but for the layer
    changed.
    """

    def __init__(self, model: Model, changes: Sequence[Change], x: Tensor):
        self.model, self.changes, self.x = model, changes, x
        self.replay = Replay(model.net, {c.layer.name: c.layer for c in changes}.values(), x[:1])
        kept = KEPT // max(1, self.replay.bytes)
        # images at a time
        self.size = max(1, min(batching.images_per_pass(x.shape[1:], None), kept))

    def each(
        self, size: int, around: Callable[[], AbstractContextManager[object]] = nullcontext
    ) -> Iterator[Seen]:
        """Yield what comes of every change, `size` images at a time, each within a context ``around()`` of its own."""
        parts = self.x.split(size)
        todo = ((part, number) for part in range(len(parts)) for number in range(len(self.changes)))
        reference = torch.empty(0)
        with self.replay.watching():
            for part, number in track(todo, "sensitivity", len(parts) * len(self.changes)):
                if number == 0:
                    reference = self.replay.record(parts[part])
                change, start = self.changes[number], part * size
                with around(), changed(self.model, change.kind, change.layer, change.put):
                    outputs = self.replay.again(parts[part], change.layer)
                    yield Seen(number, slice(start, start + len(outputs)), outputs, reference)


def measure(model: Model, changes: Sequence[Change], x: Tensor, figure: Figure) -> list[float]:
    """Return for each change the mean of `figure` over the images `x` (B, C, H, W), with that change alone."""
    runs = Runs(model, changes, x)

    def attempt(size: int) -> list[float]:
        totals = [0.0] * len(changes)
        for seen in runs.each(size):
            totals[seen.change] += float(figure(seen.outputs, seen.reference, seen.place).sum())
        return [total / len(x) for total in totals]

    return out_of_memory.fitting("sensitivity", attempt, runs.size)
