"""Rewrite a network exactly, so that more of its weights belong to plain layers.

No class is recognised by its name. A module is replaced by a plain layer that computes the same, as
seen from the functions it calls: one product of exactly its inputs with a weight that does not
depend on them, whose result it returns. So subclasses that compute nothing else, standardised,
normalised and pruned weights, and parametrizations all become plain layers. A module that does more
is left alone. `nn.MultiheadAttention` becomes `sq.network.attention.Attention`, and a module that
computes with a linear layer's weight itself calls the layer instead
(`sq.network.redirected_weights`).

The rewritten network is compared with the original one on a few images, at two batch sizes. Changes
that alter the outputs are reverted, and listed with the reason.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from sq.network import equivalent, exact_changes, geometry, redirected_weights
from sq.network.attention import Attention
from sq.network.copies import channels_last
from sq.network.exact_changes import Change, Rewritten, named_modules
from sq.network.products import run
from sq.types.problem import Model


def rewrite(
    net: nn.Module, x: Tensor, only: Collection[str] | None = None
) -> tuple[nn.Module, Rewritten]:
    """Rewrite `net` in place where that is exact; return it, or the module that replaces it.

    Parameters stay the same objects if a plain layer has the same; weights that are computed become
    parameters. A network of plain layers is not changed.

    Parameters
    ----------
    net : in eval mode
    x : images as the network takes them. The first shows the inputs of modules; outputs are
        compared on the first few
    only : the changes allowed, as `Rewritten.changes` lists them; None allows all
    """
    root = nn.ModuleDict({"net": net})  # the network itself may be the layer to replace
    result = Rewritten()
    if any(_may_be_rewritten(module) for module in net.modules()):
        changes = [*_attention_changes(root, x[:1]), *_layer_changes(root, x[:1])]
        exact_changes.apply(root, x, changes, only, result)
    # These come after the others, since they may concern layers that are plain only now.
    changes = list(redirected_weights.find(root, x[:1], result))
    exact_changes.apply(root, x, changes, only, result)
    return root["net"], result


def rewrite_model(model: Model, x: Tensor, only: Collection[str] | None = None) -> Model:
    """Return `model` with its network rewritten in place, and with the layers it has then.

    Parameters
    ----------
    x, only : as for `rewrite`
    """
    net, result = rewrite(model.net, x, only)
    if not result.changes and not result.refused:
        return model
    if x.ndim == 4:
        channels_last(net)  # for the new parameters
    layers, skipped = geometry.find(net)
    return replace(
        model,
        net=net,
        layers=layers,
        skipped=skipped,
        rewritten=tuple(result.changes),
        refused=tuple(result.refused),
    )


def _may_be_rewritten(module: nn.Module) -> bool:
    return _is_attention(module) or _may_be_layer(module)


def _is_attention(module: nn.Module) -> bool:
    return (
        isinstance(module, nn.MultiheadAttention)
        and type(module).forward is nn.MultiheadAttention.forward
    )


def _may_be_layer(module: nn.Module) -> bool:
    """Return whether `module` is not plain, has a parameter of two axes or more, and no children.

    The modules that compute a parametrized weight are no children.
    """
    if geometry.is_plain(module):
        return False
    if any(name != "parametrizations" for name, _ in module.named_children()):
        return False
    return any(parameter.ndim > 1 for parameter in module.parameters())


def _attention_changes(root: nn.ModuleDict, x: Tensor) -> Iterator[Change]:
    """Yield a change for each multi-head attention in the network."""
    modules = {
        name: module for name, module in named_modules(root).items() if _is_attention(module)
    }
    if not modules:
        return
    # Whether queries, keys and values are one tensor, in all calls.
    joint: dict[str, bool] = {}

    def look(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        query, key, value = _attention_inputs(args, kwargs)
        joint[name] = joint.get(name, True) and query is key and key is value

    _watch_calls(root["net"], x, modules, look)
    for name, module in modules.items():
        assert isinstance(module, nn.MultiheadAttention)
        attention = Attention(module, joint.get(name, True))
        what = "MultiheadAttention, its projections as linear layers"
        yield Change(name, what, _replacement(root, module, attention))


def _attention_inputs(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any, Any]:
    """Return query, key and value from the arguments of a call."""
    names = ("query", "key", "value")
    by_keyword = [kwargs[name] for name in names[len(args) :]]
    query, key, value = (*args, *by_keyword)[:3]
    return query, key, value


def _layer_changes(root: nn.ModuleDict, x: Tensor) -> Iterator[Change]:
    """Yield a change for each module that computes the same as a plain layer."""
    modules: dict[str, nn.Module] = {}
    nested: set[int] = set()  # ids of modules within others of these
    for name, module in named_modules(root).items():
        if not _is_attention(module) and _may_be_layer(module):
            modules[name] = module
            nested.update(id(child) for child in module.modules() if child is not module)
    modules = {name: module for name, module in modules.items() if id(module) not in nested}
    inputs: dict[str, Tensor] = {}

    def record(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        first = args[0] if args else kwargs.get("input")
        if isinstance(first, Tensor) and first.is_floating_point() and name not in inputs:
            inputs[name] = first.detach().clone()

    _watch_calls(root["net"], x, modules, record)
    for name, module in modules.items():
        probe = inputs.get(name)
        if probe is None:  # not called, as an expert that a router does not choose
            probe = equivalent.random_inputs(module, x)
        layer = None if probe is None else equivalent.find(module, probe)
        if layer is None:
            continue
        kind = type(module)
        old_name, new_name = kind.__name__, type(layer).__name__
        if old_name == new_name:
            old_name = f"{kind.__module__}.{old_name}"
        yield Change(name, f"{old_name}, as {new_name}", _replacement(root, module, layer))


def _watch_calls(
    net: nn.Module,
    x: Tensor,
    modules: dict[str, nn.Module],
    see: Callable[[str, tuple[Any, ...], dict[str, Any]], None],
) -> None:
    """Run `net` on `x`, and call ``see(name, args, kwargs)`` before each of `modules` runs."""

    def hook_for(name: str) -> Callable[..., None]:
        return lambda module, args, kwargs: see(name, args, kwargs)

    with ExitStack() as handles:
        for name, module in modules.items():
            handle = module.register_forward_pre_hook(hook_for(name), with_kwargs=True)
            handles.callback(handle.remove)
        run(net, x)


def _replacement(root: nn.Module, old: nn.Module, new: nn.Module) -> Callable[[ExitStack], None]:
    """Return how to put `new` in the place of `old`, under each of its names."""

    def make(undo: ExitStack) -> None:
        for parent in list(root.modules()):
            for key, child in parent._modules.items():
                if child is old:
                    undo.callback(parent._modules.update, {key: old})
                    parent._modules[key] = new

    return make
