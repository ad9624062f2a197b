"""Let modules of a network compute with other tensors than their parameters, for a while.

Parameters are never written to. A module gets another tensor as its attribute, which Python finds
before the parameter of that name, and loses it again. So afterwards the network is the same, bit by
bit.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

from torch import Tensor, nn

from sq.types.problem import Layer, Model


def original_weight(layer: Layer) -> Tensor:
    """Return a layer's parameter in its module's shape, detached, even while it is swapped."""
    parameter = layer.module._parameters["weight"]
    assert parameter is not None
    return parameter.detach()


def weight_users(net: nn.Module, layer: Layer) -> list[nn.Module]:
    """Return the modules of `net` with this layer's weight: its own, and others that share it."""
    parameter = layer.module._parameters["weight"]
    return [module for module in net.modules() if module._parameters.get("weight") is parameter]


def count_parameter_users(modules: Iterable[nn.Module]) -> Counter[int]:
    """Return how many of `modules` have each parameter, by the parameter's id."""
    users: Counter[int] = Counter()
    for module in modules:
        for parameter in module._parameters.values():
            if parameter is not None:  # such as the bias of a layer without one
                users[id(parameter)] += 1
    return users


def copied_weight_users(model: Model, copied: nn.Module) -> dict[str, list[nn.Module]]:
    """Return the `weight_users` of each layer, by its name, in a copy of the network."""
    # The copy has the same module names, but its modules and parameters are others.
    names = {id(module): name for name, module in model.net.named_modules()}
    users: dict[str, list[nn.Module]] = {}
    for layer in model.layers:
        originals = weight_users(model.net, layer)
        users[layer.name] = [copied.get_submodule(names[id(module)]) for module in originals]
    return users


@contextmanager
def swapped_parameters(swaps: Iterable[tuple[nn.Module, str, Tensor]]) -> Iterator[None]:
    """Let modules compute with tensors in place of their parameters of these names.

    Contexts may be nested: the inner one counts, until it ends.
    """
    previous: list[tuple[nn.Module, str, Tensor | None]] = []
    try:
        for module, name, tensor in swaps:
            previous.append((module, name, module.__dict__.get(name)))
            module.__dict__[name] = tensor  # found before the parameter
        yield
    finally:
        for module, name, earlier in reversed(previous):
            if earlier is None:
                module.__dict__.pop(name, None)
            else:
                module.__dict__[name] = earlier


@contextmanager
def swapped_weights(model: Model, weights: Mapping[str, Tensor]) -> Iterator[None]:
    """Let the network compute with `weights`, by layer name, in the shapes of their modules."""
    layers = {layer.name: layer for layer in model.layers}
    swaps: list[tuple[nn.Module, str, Tensor]] = []
    for name, tensor in weights.items():
        swaps += [(module, "weight", tensor) for module in weight_users(model.net, layers[name])]
    with swapped_parameters(swaps):
        yield
