"""Rewriting a network exactly, so that more of its weights are those of plain layers.

Nothing here goes by the name of a class. A module is replaced by a plain layer if it computes what
that computes, seen by what it calls: one product, of exactly its inputs and of a weight that does
not depend on them, whose result it returns. So subclasses that compute nothing else, standardised,
normalised and pruned weights, and parametrizations all become plain layers, and a module that does
more is left alone. `nn.MultiheadAttention` becomes `sq.network.attention.Attention`; a module that
computes with a linear layer's weight itself calls the layer instead.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sq import hooks, layers
from sq.network.attention import Attention, linear, parameter
from sq.network.copies import channels_last
from sq.network.products import (
    LINEAR,
    Calls,
    Product,
    Redirected,
    distance,
    product,
    run,
)
from sq.types import Model

# Relative squared error of the network's outputs: far above the rounding of attention, which is
# computed in another order (some 1e-12), far below a wrong layer. All other rewriting repeats the
# very same operations.
TOLERANCE = 1e-8


@dataclass(frozen=True)
class Rewritten:
    """What was rewritten, and what was tried and not: ``name (reason)``."""

    done: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Change:
    """One change of the network: its description, and how it is made and (`undo`) taken back."""

    name: str
    what: str
    make: Callable[[ExitStack], None]


def rewrite(net: nn.Module, x: Tensor) -> tuple[nn.Module, Rewritten]:
    """Rewrite `net` in place where that is exact; return it, or what replaces it altogether.

    Parameters stay the same objects where a plain layer has the same; weights that are computed
    become parameters. Nothing is changed in a network of plain layers.

    Parameters
    ----------
    net : in eval mode
    x : one or a few images as the network takes them
    """
    root = nn.ModuleDict({"net": net})  # the network may itself be a layer
    result = Rewritten()
    pending = any(_may_be_rewritten(module) for module in net.modules())
    if pending:
        reference = run(net, x)
        changes = [*_attention(root, x), *_layers(root, x)]
        _apply(root, x, reference, changes, result)
    if changes := list(_redirections(root, x)):
        reference = run(root["net"], x)
        _apply(root, x, reference, changes, result)
    return root["net"], result


def settle(model: Model, x: Tensor) -> Model:
    """Return `model` with its network rewritten in place, and with the layers that it has then.

    Parameters
    ----------
    x : as for `rewrite`
    """
    net, rewritten = rewrite(model.net, x)
    if not rewritten.done and not rewritten.refused:
        return model
    if x.ndim == 4:
        channels_last(net)  # the new parameters too
    found, skipped = layers.find(net)
    return replace(model, net=net, layers=found, skipped=skipped, rewritten=tuple(rewritten.done))


def _may_be_rewritten(module: nn.Module) -> bool:
    return _is_attention(module) or (_holds_matrix(module) and not layers.is_plain(module))


def _is_attention(module: nn.Module) -> bool:
    return isinstance(module, nn.MultiheadAttention) and type(module).forward is nn.MultiheadAttention.forward


def _holds_matrix(module: nn.Module) -> bool:
    """Tell whether `module` has a parameter of two or more axes, and no other modules in it."""
    if any(name != "parametrizations" for name, _ in module.named_children()):
        return False
    return any(p is not None and p.ndim > 1 for own in module.modules() for p in own._parameters.values())


def _apply(root: nn.ModuleDict, x: Tensor, reference: Any, changes: list[_Change], result: Rewritten) -> None:
    """Make all `changes`; if that changes the outputs, those alone that do not."""
    with ExitStack() as undo:
        if _make(root, x, reference, changes, undo) <= TOLERANCE:
            undo.pop_all()
            result.done.extend(f"{change.name} ({change.what})" for change in changes)
            return
    for change in changes:
        with ExitStack() as undo:
            error = _make(root, x, reference, [change], undo)
            if error <= TOLERANCE:
                undo.pop_all()
                result.done.append(f"{change.name} ({change.what})")
            else:
                result.refused.append(f"{change.name} ({change.what}: changes the outputs, {error:.1e})")


def _make(root: nn.ModuleDict, x: Tensor, reference: Any, changes: list[_Change], undo: ExitStack) -> float:
    for change in changes:
        change.make(undo)
    try:
        return distance(run(root["net"], x), reference)
    except Exception:  # the network needs what it found in the module that was there
        return float("inf")


def _replacement(root: nn.Module, old: nn.Module, new: nn.Module) -> Callable[[ExitStack], None]:
    """Return how to put `new` in the place of `old`, under every name it has."""

    def make(undo: ExitStack) -> None:
        for parent in list(root.modules()):
            for key, child in parent._modules.items():
                if child is old:
                    undo.callback(parent._modules.update, {key: old})
                    parent._modules[key] = new

    return make


def _named(root: nn.Module) -> dict[str, nn.Module]:
    """Return every module of the network by its name there, "" for the network itself."""
    return {name.removeprefix("net").removeprefix("."): m for name, m in root.named_modules() if name}


# Multi-head attention.


def _attention(root: nn.ModuleDict, x: Tensor) -> Iterator[_Change]:
    found = {name: module for name, module in _named(root).items() if _is_attention(module)}
    if not found:
        return
    joint: dict[str, bool] = {}

    def look(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> None:
            query, key, value = (
                *args,
                *(named[n] for n in ("query", "key", "value")[len(args) :]),
            )[:3]
            joint[name] = joint.get(name, True) and query is key and key is value

        return hook

    with ExitStack() as watching:
        for name, module in found.items():
            watching.callback(module.register_forward_pre_hook(look(name), with_kwargs=True).remove)
        run(root["net"], x)
    for name, module in found.items():
        assert isinstance(module, nn.MultiheadAttention)
        new = Attention(module, joint.get(name, True))
        what = "MultiheadAttention, its projections as linear layers"
        yield _Change(name, what, _replacement(root, module, new))


# Modules that are one product.


def _layers(root: nn.ModuleDict, x: Tensor) -> Iterator[_Change]:
    found = {
        name: module
        for name, module in _named(root).items()
        if not _is_attention(module) and _holds_matrix(module) and not layers.is_plain(module)
    }
    inside = {id(own) for module in found.values() for own in module.modules() if own is not module}
    found = {name: module for name, module in found.items() if id(module) not in inside}
    given: dict[str, Tensor] = {}

    def look(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> None:
            fed = args[0] if args else named.get("input")
            if isinstance(fed, Tensor) and fed.is_floating_point() and name not in given:
                given[name] = fed.detach().clone()

        return hook

    with ExitStack() as watching:
        for name, module in found.items():
            watching.callback(module.register_forward_pre_hook(look(name), with_kwargs=True).remove)
        run(root["net"], x)
    for name, module in found.items():
        probe = given.get(name, _probe(module, x))
        if probe is not None and (new := _plain(module, probe)) is not None:
            kind = type(module)
            alike = kind.__name__ == type(new).__name__
            what = f"{kind.__module__}.{kind.__name__}" if alike else kind.__name__
            yield _Change(name, f"{what}, as {type(new).__name__}", _replacement(root, module, new))


def _probe(module: nn.Module, x: Tensor) -> Tensor | None:
    """Return inputs for a layer that is not called, None if its class does not tell their shape."""
    if isinstance(module, nn.Linear):
        shape: tuple[int, ...] = (2, module.in_features)
    elif isinstance(module, nn.Conv1d | nn.Conv2d):
        reach = (d * (k - 1) for d, k in zip(module.dilation, module.kernel_size, strict=True))
        shape = (2, module.in_channels, *(2 * r + 4 for r in reach))
    else:
        return None
    like = next(iter(module.parameters()), x)
    return _noise(shape, like)


def _noise(shape: tuple[int, ...], like: Tensor) -> Tensor:
    drawn = torch.randn(shape, generator=torch.Generator().manual_seed(len(shape)), dtype=torch.float64)
    return drawn.to(like.device, like.dtype)


def _plain(module: nn.Module, x: Tensor) -> nn.Module | None:
    """Return a plain layer that computes what `module` does, None if none does."""
    first = _single_product(module, x)
    if first is None:
        return None
    # Other inputs, of another size where the module takes that: the weight must be the same, and so
    # the padding.
    larger = tuple(n + 1 for n in x.shape[2:]) if first.axes else tuple(x.shape[2:])
    for shape in ((*x.shape[:2], *larger), tuple(x.shape)):
        if (second := _single_product(module, other := _noise(shape, x))) is not None:
            break
    else:
        return None
    if not (torch.equal(first.weight, second.weight) and _same(first.bias, second.bias)):
        return None
    for new in _candidates(module, x, first):
        if _computes(new, x, first) and _computes(new, other, second):
            return new.train(module.training)
    return None


def _same(left: Tensor | None, right: Tensor | None) -> bool:
    return left is right or (left is not None and right is not None and torch.equal(left, right))


def _single_product(module: nn.Module, x: Tensor) -> Product | None:
    """Return the one product that `module` computes and returns, None if it does more or less."""
    seen: list[Product] = []

    def see(func: Callable[..., Any], args: tuple[Any, ...], named: dict[str, Any], result: Any) -> None:
        if (own := product(func, args, named, result)) is not None:
            seen.append(own)

    try:
        with Calls(see):
            result = run(module, x)
    except Exception:  # whatever a module raises that takes more than one tensor, or other ones
        return None
    if len(seen) != 1 or not isinstance(result, Tensor):
        return None
    alike = result.dtype == seen[0].result.dtype and torch.equal(result, seen[0].result)
    return seen[0] if alike else None


def _candidates(module: nn.Module, x: Tensor, own: Product) -> Iterator[nn.Module]:
    """Yield layers with the product's weight, of every way to pad that leads to its inputs."""
    if own.function is LINEAR:
        yield linear(own.weight, own.bias)
        return
    if own.padding != "same" or isinstance(module, nn.Conv1d | nn.Conv2d):
        yield _convolution(own, own.padding)
    if isinstance(module, nn.Conv1d | nn.Conv2d) and module.padding_mode != "zeros":
        padding = module.padding if isinstance(module.padding, str) else tuple(module.padding)
        yield _convolution(own, padding, module.padding_mode)
    if isinstance(own.padding, tuple):
        wider = [n - m for n, m in zip(own.inputs.shape[2:], x.shape[2:], strict=True)]
        if all(n >= 0 and n % 2 == 0 for n in wider):
            yield _convolution(own, tuple(p + n // 2 for p, n in zip(own.padding, wider, strict=True)))
    if own.axes == 2:
        yield _convolution(own, 0, kind=layers.Conv2dSame)


def _convolution(own: Product, padding: Any, mode: str = "zeros", kind: type[nn.Module] | None = None) -> nn.Module:
    kind = kind or (nn.Conv1d if own.axes == 1 else nn.Conv2d)
    channels, outputs = own.weight.shape[1] * own.groups, own.weight.shape[0]
    settings = {
        "stride": own.stride,
        "padding": padding,
        "dilation": own.dilation,
        "groups": own.groups,
    }
    settings |= {"padding_mode": mode, "bias": own.bias is not None, "device": "meta"}
    new = kind(channels, outputs, tuple(own.weight.shape[2:]), **settings)
    new.weight = parameter(own.weight)
    new.bias = None if own.bias is None else parameter(own.bias)
    return new


def _computes(new: nn.Module, x: Tensor, own: Product) -> bool:
    """Tell whether `new` gives the very inputs to the product that are its inputs in `own`."""
    if own.function is LINEAR:
        return own.inputs.dtype == x.dtype and torch.equal(own.inputs, x)
    if own.inputs.ndim != own.axes + 2 or x.ndim != own.axes + 2 or own.inputs.dtype != x.dtype:
        return False
    assert isinstance(new, nn.Conv1d | nn.Conv2d)
    try:
        wanted = _padded(own)
        padded = layers.padded(new, x)[0].reshape(-1)
    except RuntimeError:  # reflected further than the input reaches
        return False
    return padded.shape == wanted.shape and torch.equal(padded, wanted)


def _padded(own: Product) -> Tensor:
    """Return the inputs of a convolution, padded with zeros as its own argument says, flat."""
    kernel = own.weight.shape[2:]
    sizes: list[int] = []
    for axis in reversed(range(own.axes)):
        if own.padding == "valid":
            sizes += [0, 0]
        elif own.padding == "same":
            total = own.dilation[axis] * (kernel[axis] - 1)
            sizes += [total // 2, total - total // 2]
        else:
            assert isinstance(own.padding, tuple)
            sizes += [own.padding[axis]] * 2
    return F.pad(own.inputs, sizes).reshape(-1)


# Modules that compute with the weight of a layer they do not call.


@dataclass
class _Use:
    """How one weight is used outside of its layer: in which modules, and with which bias."""

    homes: set[str] = field(default_factory=set)
    biases: list[Tensor | None] = field(default_factory=list)


def _redirections(root: nn.ModuleDict, x: Tensor) -> Iterator[_Change]:
    modules = _named(root)
    uses, called = _outside(root, modules, x)
    if not uses:
        return
    try:
        again, _ = _outside(root, modules, _noise(tuple(x.shape), x))  # biases must not depend on the inputs
    except Exception:  # a network that does not take noise
        return
    counts = Counter(id(p) for m in modules.values() for p in m._parameters.values() if p is not None)
    for name, use in uses.items():
        layer = modules[name]
        assert isinstance(layer, nn.Linear)
        biases = use.biases + (again[name].biases if name in again else [])
        constant = all(_same(bias, biases[0]) for bias in biases[1:])
        if called[name] or not constant or counts[id(layer.weight)] > 1:
            continue
        homes = [modules[home] for home in sorted(use.homes)]
        yield _Change(
            name,
            "its weight, computed with by another module",
            _redirection(layer, homes, biases[0]),
        )


def _outside(root: nn.ModuleDict, modules: dict[str, nn.Module], x: Tensor) -> tuple[dict[str, _Use], Counter[str]]:
    """Run the network; return its uses of linear layers' weights outside of them, and its calls."""
    known = {id(m.weight): name for name, m in modules.items() if isinstance(m, nn.Linear) and layers.is_plain(m)}
    kept = [m.weight for m in modules.values() if isinstance(m, nn.Linear)]  # so that no other takes an identity
    uses: dict[str, _Use] = {}
    called: Counter[str] = Counter()

    def see(func: Callable[..., Any], args: tuple[Any, ...], named: dict[str, Any], result: Any) -> None:
        if func is not LINEAR or (own := product(func, args, named, result)) is None:
            return
        name = known.get(id(own.weight))
        home = running[-1] if running else ""
        if name is not None and modules[home] is not modules[name]:
            use = uses.setdefault(name, _Use())
            use.homes.add(home)
            use.biases.append(own.bias)

    with hooks.entering(modules, lambda name: called.update([name])) as running, Calls(see):
        run(root["net"], x)
    del kept
    return uses, called


def _redirection(layer: nn.Linear, homes: list[nn.Module], bias: Tensor | None) -> Callable[[ExitStack], None]:
    def make(undo: ExitStack) -> None:
        undo.callback(layer._parameters.update, bias=layer.bias)
        layer.bias = bias if bias is layer.bias else None if bias is None else parameter(bias)
        for home in homes:
            forward = home.__dict__.get("forward")
            if isinstance(forward, Redirected):
                undo.callback(forward.layers.remove, layer)
                forward.layers.append(layer)
            else:
                if forward is None:
                    undo.callback(home.__dict__.pop, "forward", None)
                else:
                    undo.callback(home.__dict__.update, forward=forward)
                home.forward = Redirected(home.forward, [layer])

    return make
