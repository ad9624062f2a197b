"""Reconstruction units: residual blocks, and the layers outside of them.

A residual block is recognised by what a pass does: two feature maps are added in a module's own
forward. No network type is named here, and BatchNorm may be folded or not.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sq.config.schema import nearest
from sq.errors import SqError
from sq.network import hooks
from sq.network.forward import forward
from sq.network.residual_adds import Adds
from sq.types.problem import Layer, Model

SHOWN_NAMES = 3  # in a message


@dataclass(frozen=True)
class ReconstructionUnit:
    """A module that is called once in a pass, or a single layer, with the layers in it."""

    name: str
    module: nn.Module
    layers: list[Layer]  # in the order of execution

    def channels(self, output: Tensor) -> int:
        """Return the number of channels of the unit's output.

        Channels are on the second axis. They are on the last one if the unit's last layer is linear
        and has that many outputs: a linear layer itself, blocks of tokens (B, T, C), and blocks of
        images (B, H, W, C).
        """
        last = self.layers[-1]
        if last.kind == "linear" and output.shape[-1] == last.outputs:
            return last.outputs
        return output.shape[1]


def find(model: Model, x: Tensor, named: list[str] | None = None) -> list[ReconstructionUnit]:
    """Return the units of a network in the order of execution; each layer is in exactly one.

    A module is a block if two feature maps are added in its own forward, or in that of a module in
    it without layers. So is each other module of the same class that has layers (an inverted
    residual whose shape allows no shortcut). Of nested blocks the innermost counts; the network
    itself is no block. A module cannot be reconstructed alone if it is called several times, or if
    its layers are also called outside of it: its layers are units then.

    Parameters
    ----------
    model : with layers in the order of execution, see `sq.network.tracing.trace`
    x : one image (1, C, H, W)
    named : modules (blocks and single layers) to use instead of searching. A layer that the model
        keeps in full precision is in none

    Raises
    ------
    SqError : `named` has a name that is no module, or a module that cannot be reconstructed alone,
        or it misses a layer, or has one twice

    Source
    ------
    Li et al. 2021 (BRECQ), arXiv 2102.05426, section 3.2: reconstruction by residual blocks. How
    blocks are recognised is ours.
    """
    modules = dict(model.net.named_modules())
    calls = _Calls(model, modules, x)
    blocks = (
        _search(modules, calls) if named is None else _check_named(model, modules, calls, named)
    )
    block_of: dict[str, str] = {}
    for block in blocks:
        for layer in calls.layers_in(block):
            block_of[layer.name] = block
    members: dict[str, list[Layer]] = {}
    for layer in model.layers:
        members.setdefault(block_of.get(layer.name, layer.name), []).append(layer)
    return [ReconstructionUnit(name, modules[name], layers) for name, layers in members.items()]


def check(net: nn.Module, units: list[ReconstructionUnit], x: Tensor) -> None:
    """Check that each unit can be run alone: image `x` (1, C, H, W) calls it once, with one tensor.

    Raises
    ------
    SqError : a unit cannot
    """
    modules = {unit.name: unit.module for unit in units}
    # Of each module, a value for each call.
    inputs: dict[str, list[Any]] = defaultdict(list)
    outputs: dict[str, list[Any]] = defaultdict(list)

    def recorder(values: dict[str, list[Any]]) -> hooks.See:
        def record(name: str, module: nn.Module, value: Any) -> None:
            # a copy, since the network may change the tensor in place later
            values[name].append(value.clone() if isinstance(value, Tensor) else None)

        return record

    with (
        torch.no_grad(),
        hooks.feeding(modules, recorder(inputs)),
        hooks.returning(modules, recorder(outputs)),
    ):
        forward(net, x)
    for name, module in modules.items():
        if not _repeats(module, inputs[name], outputs[name]):
            raise SqError(
                f"{name} is called {len(outputs[name])} times a pass, or needs more than one "
                "tensor, so it cannot be learned alone: choose quantizer=eptq, which learns the "
                "whole network, or quantizer.named"
            )


def _repeats(module: nn.Module, inputs: list[Any], outputs: list[Any]) -> bool:
    """Return whether `module` was called once, and returns the same for its input alone."""
    if len(outputs) != 1:
        return False
    try:
        with torch.no_grad():
            return torch.equal(module(inputs[0]), outputs[0])
    except (TypeError, RuntimeError, AttributeError):  # from whatever the module's forward does
        return False


class _Calls:
    """The calls of modules in one pass, and the modules that add feature maps."""

    def __init__(self, model: Model, modules: dict[str, nn.Module], x: Tensor):
        self.layers = model.layers
        # Of each module, a path for each call: the modules running then, outermost first, with
        # itself last.
        self.paths: dict[str, list[tuple[str, ...]]] = {}
        addition_paths: set[tuple[str, ...]] = set()

        def on_addition(side: str, operand: Tensor) -> Tensor:
            addition_paths.add(tuple(running))
            return operand

        def on_call(name: str) -> None:
            self.paths.setdefault(name, []).append(tuple(running))

        with torch.no_grad(), hooks.entering(modules, on_call) as running, Adds(on_addition):
            forward(model.net, x)
        missing = [layer.name for layer in self.layers if layer.name not in self.paths]
        if missing:
            raise SqError(
                f"layer {missing[0]} is not called by the first image, so blocks cannot be "
                "recognised: choose quantizer=eptq or sensiquant"
            )
        # For each addition, the innermost module with layers that runs then.
        self.adding: set[str] = set()
        for path in addition_paths:
            for name in reversed(path):
                if name and self.layers_in(name):
                    self.adding.add(name)
                    break

    def layers_in(self, name: str) -> list[Layer]:
        """Return the layers that are called within a module, or are that module."""
        return [layer for layer in self.layers if self._calls_within(layer, name)]

    def is_separable(self, name: str) -> bool:
        """Return whether a module is called once, and its layers nowhere else."""
        if len(self.paths.get(name, [])) != 1:
            return False
        for layer in self.layers_in(name):
            calls = len(self.paths[layer.name])
            if self._calls_within(layer, name) < calls:
                return False
        return True

    def _calls_within(self, layer: Layer, name: str) -> int:
        """Return how many calls of `layer` are within the module `name`, or are its own."""
        return sum(name in path for path in self.paths[layer.name])

    def innermost(self, names: Iterable[str]) -> set[str]:
        """Return those of `names` within which none of the others is called."""
        innermost = set(names)
        for name in set(names):
            for path in self.paths[name]:
                innermost.difference_update(path[:-1])
        return innermost


def _search(modules: dict[str, nn.Module], calls: _Calls) -> list[str]:
    """Return the names of the residual blocks."""
    kinds = {type(modules[name]) for name in calls.innermost(calls.adding)}
    candidates = set(calls.adding)
    for name in calls.paths:
        if name and type(modules[name]) in kinds and calls.layers_in(name):
            candidates.add(name)
    return [name for name in calls.innermost(candidates) if calls.is_separable(name)]


def _check_named(
    model: Model, modules: dict[str, nn.Module], calls: _Calls, named: list[str]
) -> list[str]:
    """Return those of `named` that have layers, after checking that they can be the units."""
    layer_names = {layer.name for layer in model.layers}
    for name in named:
        if name not in modules or not name:
            raise SqError(
                f"blocks: {name!r} is no module of {type(model.net).__name__}; "
                f"{nearest(name, modules)}"
            )
        if name not in calls.paths:
            raise SqError(f"blocks: {name} is never called itself: name the modules in it instead")
        if not (calls.is_separable(name) or name in layer_names):
            raise SqError(
                f"blocks: {name} cannot be reconstructed alone, because it, or a layer in it, is "
                "called more than once in a pass and not within it: name its layers instead"
            )
    members: dict[str, list[str]] = {}
    counts: Counter[str] = Counter()
    for name in named:  # which may have a name twice
        members[name] = [layer.name for layer in calls.layers_in(name)]
        counts.update(members[name])
    repeated = [layer for layer, count in counts.items() if count > 1]
    if repeated:
        holders = ", ".join(name for name in named if repeated[0] in members[name])
        raise SqError(
            f"blocks: layer {repeated[0]} is in several of them ({holders}): each layer must be in "
            "one"
        )
    missing = [layer.name for layer in calls.layers if layer.name not in counts]
    if missing:
        shown = ", ".join(missing[:SHOWN_NAMES])
        if len(missing) > SHOWN_NAMES:
            shown += f" and {len(missing) - SHOWN_NAMES} more"
        raise SqError(f"blocks: they miss {shown}: name each layer, or a block that it is in")
    return [name for name in named if members[name]]
