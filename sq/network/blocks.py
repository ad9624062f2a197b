"""Units: the parts of a network that are reconstructed together, residual blocks and the layers outside of them.

What a residual block is, is seen, not known: one pass tells in which module's own forward two
feature maps are added. No type of network is named here, and BatchNorm may be folded or not.
"""

from __future__ import annotations

from collections import Counter
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


@dataclass(frozen=True)
class Unit:
    """What is reconstructed together: a module that is called once in a pass, or a layer, and the layers in it."""

    name: str
    module: nn.Module
    layers: list[Layer]  # in the order of execution

    def channels(self, output: Tensor) -> int:
        """Return how many channels are in what the unit returned.

        They are on the second axis, but on the last where the unit's last layer is linear and has
        as many outputs as that is long: a linear layer itself, blocks of tokens (B, T, C) and of
        images (B, H, W, C).
        """
        last = self.layers[-1]
        linear = last.kind == "linear" and output.shape[-1] == last.outputs
        return last.outputs if linear else output.shape[1]


def find(model: Model, x: Tensor, named: list[str] | None = None) -> list[Unit]:
    """Return the units of a network, in the order of execution: each of its layers is in one of them.

    A module is a block if two feature maps are added in its own forward, or in that of a module in
    it which has no layers; so is each other module of the same class that has layers (an inverted
    residual whose shape leaves no room for a shortcut). Of nested ones the innermost is; the
    network itself is none. A module that is called several times, or whose layers are called
    outside of it as well, cannot be reconstructed alone: its layers are units.

    Parameters
    ----------
    model : its layers are in the order of execution, as `sq.network.tracing.settle` leaves them
    x : one image (1, C, H, W)
    named : modules, blocks and single layers, to take in place of what would be found; a layer that
    the model leaves
        in full precision is in none

    Raises
    ------
    SqError : `named` has what is no module, cannot be reconstructed alone, misses a layer or has it
    twice

    Source
    ------
    Li et al. 2021 (BRECQ), arXiv 2102.05426, section 3.2: reconstruction by residual blocks. How
    they are told from other modules is ours.
    """
    modules = dict(model.net.named_modules())
    seen = _Pass(model, modules, x)
    blocks = _found(modules, seen) if named is None else _checked(model, modules, seen, named)
    home = {layer.name: block for block in blocks for layer in seen.held(block)}
    members: dict[str, list[Layer]] = {}
    for layer in model.layers:
        members.setdefault(home.get(layer.name, layer.name), []).append(layer)
    return [Unit(name, modules[name], layers) for name, layers in members.items()]


def check(net: nn.Module, chosen: list[Unit], x: Tensor) -> None:
    """See that each unit can be run on its own: a pass over image `x` (1, C, H, W) calls it once, with one tensor.

    Raises
    ------
    SqError : it cannot
    """
    own = {unit.name: unit.module for unit in chosen}
    given: dict[str, list[Any]] = {name: [] for name in own}
    made: dict[str, list[Any]] = {name: [] for name in own}

    def note(seen: dict[str, list[Any]]) -> hooks.See:
        # A copy, for what goes on may change it in place.
        return lambda name, module, y: seen[name].append(
            y.clone() if isinstance(y, Tensor) else None
        )

    with torch.no_grad(), hooks.feeding(own, note(given)), hooks.returning(own, note(made)):
        forward(net, x)
    for name, module in own.items():
        try:
            with torch.no_grad():
                alone = len(made[name]) == 1 and torch.equal(module(given[name][0]), made[name][0])
        except (TypeError, RuntimeError, AttributeError):
            alone = False
        if not alone:
            raise SqError(
                f"{name} is called {len(made[name])} times a pass, or needs more than one tensor, so it cannot be "
                "learned alone: choose quantizer=eptq, which learns the whole network, or quantizer.named"
            )


class _Pass:
    """One pass through a network: which modules it calls, what runs around each call and each addition."""

    def __init__(self, model: Model, modules: dict[str, nn.Module], x: Tensor):
        self.layers = model.layers
        # by module: of each call, what runs then, itself last
        self.around: dict[str, list[tuple[str, ...]]] = {}
        adding: set[tuple[str, ...]] = set()

        def add(side: str, operand: Tensor) -> Tensor:
            adding.add(tuple(running))
            return operand

        def call(name: str) -> None:
            self.around.setdefault(name, []).append(tuple(running))

        with torch.no_grad(), hooks.entering(modules, call) as running, Adds(add):
            forward(model.net, x)
        if missing := [layer.name for layer in self.layers if layer.name not in self.around]:
            raise SqError(
                f"layer {missing[0]} is not called by the first image, so that blocks cannot be told: choose "
                "quantizer=eptq or sensiquant"
            )
        homes = ([name for name in path if name and self.held(name)] for path in adding)
        self.adding = {names[-1] for names in homes if names}  # modules that add, and have layers

    def held(self, name: str) -> list[Layer]:
        """Return the layers that are called in a module, or are it."""
        return [
            layer for layer in self.layers if any(name in path for path in self.around[layer.name])
        ]

    def alone(self, name: str) -> bool:
        """Return whether a module is called once, and the layers in it nowhere else."""
        paths = [path for layer in self.held(name) for path in self.around[layer.name]]
        return len(self.around.get(name, [])) == 1 and all(name in path for path in paths)

    def innermost(self, names: Iterable[str]) -> set[str]:
        """Return those of modules `names` in which none of the others is called."""
        own = set(names)
        return own - {outer for name in own for path in self.around[name] for outer in path[:-1]}


def _found(modules: dict[str, nn.Module], seen: _Pass) -> list[str]:
    first = seen.innermost(seen.adding)
    kinds = {type(modules[name]) for name in first}
    alike = {
        name for name in seen.around if name and type(modules[name]) in kinds and seen.held(name)
    }
    return [name for name in seen.innermost(alike | seen.adding) if seen.alone(name)]


def _checked(
    model: Model, modules: dict[str, nn.Module], seen: _Pass, named: list[str]
) -> list[str]:
    """Return those of `named` that have layers, if they can be the units of the network."""
    own = {layer.name for layer in model.layers}
    for name in named:
        if name not in modules or not name:
            raise SqError(
                f"blocks: {name!r} is no module of {type(model.net).__name__}; {nearest(name, modules)}"
            )
        if name not in seen.around:
            raise SqError(f"blocks: {name} is never called itself: name the modules in it instead")
        if not (seen.alone(name) or name in own):
            raise SqError(
                f"blocks: {name} cannot be reconstructed alone, because it, or a layer in it, is called more than "
                "once in a pass and not within it: name its layers instead"
            )
    counts = Counter(layer.name for name in named for layer in seen.held(name))
    if several := [name for name, count in counts.items() if count > 1]:
        holders = ", ".join(
            name for name in named if several[0] in {layer.name for layer in seen.held(name)}
        )
        raise SqError(
            f"blocks: layer {several[0]} is in several of them ({holders}): each layer must be in one"
        )
    if missing := [layer.name for layer in seen.layers if layer.name not in counts]:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise SqError(
            f"blocks: they miss {', '.join(missing[:3])}{more}: name each layer, or a block that it is in"
        )
    return [name for name in named if seen.held(name)]
