"""Rewriting a network exactly, so that more of its weights are those of plain layers.

Nothing here goes by the name of a class. A module is replaced by a plain layer if it computes what
that computes, seen by what it calls: one product, of exactly its inputs and of a weight that does
not depend on them, whose result it returns. So subclasses that compute nothing else, standardised,
normalised and pruned weights, and parametrizations all become plain layers, and a module that does
more is left alone. `nn.MultiheadAttention` becomes `sq.network.attention.Attention`; a module that
computes with a linear layer's weight itself calls the layer instead.

The rewritten network is compared with the original one on a few images, at two batch sizes. What
does not leave the outputs as they are is taken back, and listed with the reason.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor, nn

from sq.errors import one_line
from sq.network import equivalent, geometry, hooks
from sq.network.attention import Attention, parameter
from sq.network.copies import channels_last
from sq.network.products import (
    LINEAR,
    Calls,
    Redirected,
    distance,
    product,
    run,
)
from sq.runtime import out_of_memory
from sq.types.problem import Model

# Relative squared error of the network's outputs: far above the rounding of attention, which is
# computed in another order (some 1e-12), far below a wrong layer. All other rewriting repeats the
# very same operations.
TOLERANCE = 1e-8
IMAGES = 4  # that outputs are compared on, at most
READ = "its weight, computed with by another module"


@dataclass(frozen=True)
class Rewritten:
    """What was rewritten: ``name (what)``; and what was tried and not: its name and the reason."""

    done: list[str] = field(default_factory=list)
    refused: list[tuple[str, str]] = field(default_factory=list)


@dataclass(frozen=True)
class _Change:
    """One change of the network: its description, and how it is made and (`undo`) taken back."""

    name: str
    what: str
    make: Callable[[ExitStack], None]

    def __str__(self) -> str:
        """Return it as it is listed."""
        return f"{self.name} ({self.what})"


class _Outputs:
    """What a network returns for a few images, which every change must leave as it is."""

    def __init__(self, root: nn.ModuleDict, x: Tensor):
        """Run the network on the first image, and on the next ones together if it takes them so."""
        self.root = root
        self.passes = [(x[:1], run(root["net"], x[:1]))]
        further = x[1:IMAGES]
        if not len(further):
            return
        try:
            self.passes.append((further, run(root["net"], further)))
        except Exception as error:  # a network of one image at a time
            if out_of_memory.is_out(error):
                raise
            self.passes += [(part, run(root["net"], part)) for part in further.split(1)]

    def objection(self) -> str:
        """Return why the network as it is now may not stay so, "" if it may."""
        try:
            error = max(
                distance(run(self.root["net"], part), outputs) for part, outputs in self.passes
            )
        except Exception as problem:  # the network needs what it found in the module that was there
            if out_of_memory.is_out(problem):
                raise
            return f"the network fails with it, {one_line(problem)[:160]}"
        return "" if error <= TOLERANCE else f"changes the outputs, {error:.1e}"


def rewrite(
    net: nn.Module, x: Tensor, only: Collection[str] | None = None
) -> tuple[nn.Module, Rewritten]:
    """Rewrite `net` in place where that is exact; return it, or what replaces it altogether.

    Parameters stay the same objects where a plain layer has the same; weights that are computed
    become parameters. Nothing is changed in a network of plain layers.

    Parameters
    ----------
    net : in eval mode
    x : images as the network takes them: the first shows what modules are given, the first `IMAGES`
        are those that outputs are compared on
    only : what may be rewritten, as `Rewritten.done` lists it; None allows everything
    """
    root = nn.ModuleDict({"net": net})  # the network may itself be a layer
    result = Rewritten()
    pending = any(_may_be_rewritten(module) for module in net.modules())
    if pending:
        _apply(root, x, [*_attention(root, x[:1]), *_layers(root, x[:1])], only, result)
    _apply(root, x, list(_redirections(root, x[:1], result)), only, result)
    return root["net"], result


def settle(model: Model, x: Tensor, only: Collection[str] | None = None) -> Model:
    """Return `model` with its network rewritten in place, and with the layers that it has then.

    Parameters
    ----------
    x, only : as for `rewrite`
    """
    net, rewritten = rewrite(model.net, x, only)
    if not rewritten.done and not rewritten.refused:
        return model
    if x.ndim == 4:
        channels_last(net)  # the new parameters too
    found, skipped = geometry.find(net)
    done, refused = tuple(rewritten.done), tuple(rewritten.refused)
    return replace(model, net=net, layers=found, skipped=skipped, rewritten=done, refused=refused)


def _may_be_rewritten(module: nn.Module) -> bool:
    return _is_attention(module) or (_holds_matrix(module) and not geometry.is_plain(module))


def _is_attention(module: nn.Module) -> bool:
    return (
        isinstance(module, nn.MultiheadAttention)
        and type(module).forward is nn.MultiheadAttention.forward
    )


def _holds_matrix(module: nn.Module) -> bool:
    """Tell whether `module` has a parameter of two or more axes, and no other modules in it."""
    if any(name != "parametrizations" for name, _ in module.named_children()):
        return False
    return any(
        p is not None and p.ndim > 1 for own in module.modules() for p in own._parameters.values()
    )


def _apply(
    root: nn.ModuleDict,
    x: Tensor,
    changes: list[_Change],
    only: Collection[str] | None,
    result: Rewritten,
) -> None:
    """Make all `changes` that `only` allows; if that changes the outputs, those alone that do not."""
    changes = [change for change in changes if only is None or str(change) in only]
    if not changes:
        return
    outputs = _Outputs(root, x)
    with ExitStack() as undo:
        for change in changes:
            change.make(undo)
        if not outputs.objection():
            undo.pop_all()
            result.done.extend(map(str, changes))
            return
    for change in changes:
        with ExitStack() as undo:
            change.make(undo)
            objection = outputs.objection()
            if objection:
                result.refused.append((change.name, f"{change.what}: {objection}"))
            else:
                undo.pop_all()
                result.done.append(str(change))


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
    return {
        name.removeprefix("net").removeprefix("."): m for name, m in root.named_modules() if name
    }


def _watch(
    net: nn.Module,
    x: Tensor,
    modules: dict[str, nn.Module],
    see: Callable[[str, tuple[Any, ...], dict[str, Any]], None],
) -> None:
    """Run `net`, and call ``see(name, args, kwargs)`` before each of `modules` runs."""

    def hook(name: str) -> Callable[..., None]:
        return lambda module, args, named: see(name, args, named)

    with ExitStack() as handles:
        for name, module in modules.items():
            handles.callback(module.register_forward_pre_hook(hook(name), with_kwargs=True).remove)
        run(net, x)


# Multi-head attention.


def _attention(root: nn.ModuleDict, x: Tensor) -> Iterator[_Change]:
    found = {name: module for name, module in _named(root).items() if _is_attention(module)}
    if not found:
        return
    joint: dict[str, bool] = {}

    def look(name: str, args: tuple[Any, ...], named: dict[str, Any]) -> None:
        query, key, value = (*args, *(named[n] for n in ("query", "key", "value")[len(args) :]))[:3]
        joint[name] = joint.get(name, True) and query is key and key is value

    _watch(root["net"], x, found, look)
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
        if not _is_attention(module) and _holds_matrix(module) and not geometry.is_plain(module)
    }
    inside = {id(own) for module in found.values() for own in module.modules() if own is not module}
    found = {name: module for name, module in found.items() if id(module) not in inside}
    given: dict[str, Tensor] = {}

    def look(name: str, args: tuple[Any, ...], named: dict[str, Any]) -> None:
        fed = args[0] if args else named.get("input")
        if isinstance(fed, Tensor) and fed.is_floating_point() and name not in given:
            given[name] = fed.detach().clone()

    _watch(root["net"], x, found, look)
    for name, module in found.items():
        probe = given.get(name, equivalent.inputs_for(module, x))
        if probe is not None and (new := equivalent.of(module, probe)) is not None:
            kind = type(module)
            alike = kind.__name__ == type(new).__name__
            what = f"{kind.__module__}.{kind.__name__}" if alike else kind.__name__
            yield _Change(name, f"{what}, as {type(new).__name__}", _replacement(root, module, new))


# Modules that compute with the weight of a layer they do not call.


@dataclass
class _Use:
    """How one weight is used outside of its layer: in which modules, and with which bias."""

    homes: set[str] = field(default_factory=set)
    biases: list[Tensor | None] = field(default_factory=list)


def _redirections(root: nn.ModuleDict, x: Tensor, result: Rewritten) -> Iterator[_Change]:
    modules = _named(root)
    uses, called = _outside(root, modules, x)
    if not uses:
        return
    failure = ""
    again: dict[str, _Use] = {}
    try:
        # biases must not depend on the inputs
        again, _ = _outside(root, modules, equivalent.noise(tuple(x.shape), x))
    except Exception as error:  # a network that does not take noise
        if out_of_memory.is_out(error):
            raise
        failure = one_line(error)[:160]
    counts = Counter(
        id(p) for m in modules.values() for p in m._parameters.values() if p is not None
    )
    for name, use in uses.items():
        layer = modules[name]
        assert isinstance(layer, nn.Linear)
        if called[name]:  # it is quantized as the layer that it is
            continue
        biases = use.biases + (again[name].biases if name in again else [])
        if not all(equivalent.same(bias, biases[0]) for bias in biases[1:]):
            result.refused.append((name, f"{READ}: its bias is not always the same"))
        elif failure and not all(bias is None or isinstance(bias, nn.Parameter) for bias in biases):
            reason = f"its bias is computed, and the network does not take noise to compare it on, {failure}"
            result.refused.append((name, f"{READ}: {reason}"))
        elif counts[id(layer.weight)] > 1:
            result.refused.append((name, f"{READ}: other modules have that weight too"))
        else:
            homes = [modules[home] for home in sorted(use.homes)]
            yield _Change(name, READ, _redirection(layer, homes, biases[0]))


def _outside(
    root: nn.ModuleDict, modules: dict[str, nn.Module], x: Tensor
) -> tuple[dict[str, _Use], Counter[str]]:
    """Run the network; return its uses of linear layers' weights outside of them, and its calls."""
    known = {
        id(m.weight): name
        for name, m in modules.items()
        if isinstance(m, nn.Linear) and geometry.is_plain(m)
    }
    # so that no other takes an identity
    kept = [m.weight for m in modules.values() if isinstance(m, nn.Linear)]
    uses: dict[str, _Use] = {}
    called: Counter[str] = Counter()

    def see(
        func: Callable[..., Any], args: tuple[Any, ...], named: dict[str, Any], result: Any
    ) -> None:
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


def _redirection(
    layer: nn.Linear, homes: list[nn.Module], bias: Tensor | None
) -> Callable[[ExitStack], None]:
    def make(undo: ExitStack) -> None:
        undo.callback(layer._parameters.update, bias=layer.bias)
        new = bias if bias is layer.bias or bias is None else parameter(bias)
        layer._parameters["bias"] = new
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
