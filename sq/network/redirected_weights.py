"""Let modules that compute with a linear layer's weight themselves call the layer instead.

Hooks of the layer, which observe and quantize its inputs, would otherwise see nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from sq.errors import one_line
from sq.network import equivalent, geometry, hooks
from sq.network.attention import as_parameter
from sq.network.exact_changes import Change, Rewritten, named_modules
from sq.network.products import LINEAR, Calls, Redirected, product, run
from sq.network.weight_swap import count_parameter_users
from sq.runtime import out_of_memory

# How the change is listed. Records and packed files hold this text.
DESCRIPTION = "its weight, computed with by another module"


@dataclass
class _Use:
    """How a layer's weight is used outside of the layer: in which modules, with which biases."""

    modules: set[str] = field(default_factory=set)
    biases: list[Tensor | None] = field(default_factory=list)


def find(root: nn.ModuleDict, x: Tensor, result: Rewritten) -> Iterator[Change]:
    """Yield the changes for image `x` (1, ...); what cannot be changed is added to `result`."""
    modules = named_modules(root)
    uses, calls = _uses_outside(root, modules, x)
    if not uses:
        return
    # A second pass, on other inputs: biases must not depend on them.
    noise_uses: dict[str, _Use] = {}
    failure = ""
    try:
        noise_uses, _ = _uses_outside(root, modules, equivalent.noise(tuple(x.shape), x))
    except Exception as error:  # a network that does not take noise
        if out_of_memory.is_out(error):
            raise
        failure = one_line(error)[:160]
    users = count_parameter_users(modules.values())
    for name, use in uses.items():
        layer = modules[name]
        assert isinstance(layer, nn.Linear)
        if calls[name]:  # it is quantized as the layer that it is
            continue
        biases = list(use.biases)
        if name in noise_uses:
            biases += noise_uses[name].biases
        reason = _objection(biases, failure)
        if not reason and users[id(layer.weight)] > 1:
            reason = "other modules have that weight too"
        if reason:
            result.refused.append((name, f"{DESCRIPTION}: {reason}"))
            continue
        callers = [modules[caller] for caller in sorted(use.modules)]
        yield Change(name, DESCRIPTION, _redirection(layer, callers, biases[0]))


def _objection(biases: list[Tensor | None], failure: str) -> str:
    """Return why these biases cannot become the layer's bias, "" if they can.

    Parameters
    ----------
    failure : of the pass on noise, "" if it did not fail
    """
    if not all(equivalent.same(bias, biases[0]) for bias in biases[1:]):
        return "its bias is not always the same"
    computed = any(bias is not None and not isinstance(bias, nn.Parameter) for bias in biases)
    if failure and computed:
        return (
            f"its bias is computed, and the network does not take noise to compare it on, {failure}"
        )
    return ""


def _uses_outside(
    root: nn.ModuleDict, modules: dict[str, nn.Module], x: Tensor
) -> tuple[dict[str, _Use], Counter[str]]:
    """Run the network on `x`.

    Returns
    -------
    uses : of linear layers' weights outside of these layers, by layer name
    calls : of each module, how often it was called
    """
    linear_layers = {
        name: module for name, module in modules.items() if isinstance(module, nn.Linear)
    }
    # All of these weights are referenced here, so that no other tensor gets the id of one.
    weights = {name: layer.weight for name, layer in linear_layers.items()}
    layer_of: dict[int, str] = {}
    for name, layer in linear_layers.items():
        if geometry.is_plain(layer):
            layer_of[id(weights[name])] = name
    uses: dict[str, _Use] = {}
    calls: Counter[str] = Counter()

    def record(
        func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], result: Any
    ) -> None:
        if func is not LINEAR:
            return
        call = product(func, args, kwargs, result)
        if call is None:
            return
        name = layer_of.get(id(call.weight))
        caller = running[-1] if running else ""
        if name is not None and modules[caller] is not modules[name]:
            use = uses.setdefault(name, _Use())
            use.modules.add(caller)
            use.biases.append(call.bias)

    def count(name: str) -> None:
        calls[name] += 1

    with hooks.entering(modules, count) as running, Calls(record):
        run(root["net"], x)
    return uses, calls


def _redirection(
    layer: nn.Linear, callers: list[nn.Module], bias: Tensor | None
) -> Callable[[ExitStack], None]:
    """Return how to make `callers` call `layer`, which gets `bias`."""

    def make(undo: ExitStack) -> None:
        undo.callback(layer._parameters.update, bias=layer.bias)
        if bias is None or bias is layer.bias:
            layer._parameters["bias"] = bias
        else:
            layer._parameters["bias"] = as_parameter(bias)
        for caller in callers:
            _redirect(caller, layer, undo)

    return make


def _redirect(caller: nn.Module, layer: nn.Linear, undo: ExitStack) -> None:
    """Make the forward of `caller` call `layer` where it multiplies with its weight."""
    forward = caller.__dict__.get("forward")
    if isinstance(forward, Redirected):  # for another layer already
        undo.callback(forward.layers.remove, layer)
        forward.layers.append(layer)
        return
    if forward is None:
        undo.callback(caller.__dict__.pop, "forward", None)
    else:
        undo.callback(caller.__dict__.update, forward=forward)
    caller.forward = Redirected(caller.forward, [layer])
