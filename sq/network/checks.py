"""Checks of a network before use: it has values, they are finite, and its weights are float32."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from sq.core.progress import say
from sq.core.wording import quantity
from sq.errors import SqError
from sq.network import geometry, hooks
from sq.network.forward import forward

SHOWN_NAMES = 3  # in a message


def check(net: nn.Module) -> None:
    """Raise an `SqError` that names the module or tensor, if `net` cannot be quantized.

    It must be a module of Python code, run once if it has lazy layers, neither on the meta device
    nor quantized, with layers in float32, and with finite parameters and running statistics.
    Buffers may hold infinity, as masks do, but not NaN.
    """
    for name, module in net.named_modules():
        _check_kind(name or type(net).__name__, module)
    for name, tensor in _tensors(net):
        _check_tensor(name, tensor)
    hidden = _unregistered_modules(net)
    if hidden:
        say(
            "plain lists or dictionaries, where PyTorch does not see them, hold "
            f"{quantity(hidden, 'module')} that stay in full precision "
            f"({', '.join(hidden[:SHOWN_NAMES])}): use nn.ModuleList or nn.ModuleDict"
        )
    layers, _ = geometry.find(net)
    for layer in layers:
        dtype = geometry.weight(layer.module).dtype
        if dtype != torch.float32:
            raise SqError(
                f"the weight of layer {layer.name} is {_short(dtype)}; layers are quantized from "
                "float32: call net.float() first"
            )


def _check_kind(label: str, module: nn.Module) -> None:
    """Raise an `SqError` if `module` is of a class whose layers cannot be quantized."""
    if isinstance(module, torch.jit.ScriptModule):
        raise SqError(
            f"{label} is a TorchScript module, whose layers cannot be changed: give the Python "
            "module that it was made from"
        )
    kind = type(module)
    # PyTorch's quantized layers, in its older and newer packages.
    of_torch = kind.__module__.startswith(("torch.ao.nn", "torch.nn"))
    if of_torch and ".quantized" in kind.__module__:
        raise SqError(
            f"{label} ({kind.__name__}) is quantized already: give the full-precision network"
        )


def _unregistered_modules(net: nn.Module) -> list[str]:
    """Return where modules with parameters are attributes in `net` without being its submodules."""
    # By identity: a module in a plain container may be registered elsewhere as well.
    registered = {id(module) for module in net.modules()}
    attributes_of_any = vars(nn.Module())  # such as _modules and _parameters
    paths: dict[int, str] = {}
    for name, owner in net.named_modules():
        for attribute, value in vars(owner).items():
            if attribute in attributes_of_any:
                continue
            for path, module in _modules_in(f"{name}.{attribute}".lstrip("."), value, set()):
                if id(module) not in registered and any(True for _ in module.parameters()):
                    paths.setdefault(id(module), path)
    return list(paths.values())


def _modules_in(path: str, value: Any, visited: set[int]) -> Iterator[tuple[str, nn.Module]]:
    """Yield the modules in an attribute's value, each with its path.

    `visited` holds the ids of the containers seen so far: a container may hold itself.
    """
    if isinstance(value, nn.Module):
        yield path, value
    elif isinstance(value, list | tuple | dict) and id(value) not in visited:
        visited.add(id(value))
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, item in items:
            yield from _modules_in(f"{path}[{key!r}]", item, visited)


def _tensors(net: nn.Module) -> list[tuple[str, Tensor]]:
    return [*net.named_parameters(), *net.named_buffers()]


def _check_tensor(name: str, tensor: Tensor) -> None:
    if is_lazy(tensor):
        raise SqError(
            f"{name} has no values yet, because its lazy layer has not seen an image: run the "
            "network once, train it or load its weights"
        )
    if tensor.is_meta:
        raise SqError(
            f"{name} is on the meta device, without values: load the weights "
            "(net.to_empty, then a state)"
        )
    if tensor.is_quantized:
        raise SqError(
            f"{name} is of {_short(tensor.dtype)}, quantized already: give the full-precision "
            "network"
        )
    if not tensor.is_floating_point():
        return
    # Other buffers may hold infinity: masks that are added before a softmax do.
    must_be_finite = isinstance(tensor, nn.Parameter) or name.endswith(
        ("running_mean", "running_var")
    )
    bad = ~torch.isfinite(tensor) if must_be_finite else torch.isnan(tensor)
    if bad.any():
        raise SqError(
            f"{name} holds NaN or infinity ({int(bad.sum())} of {tensor.numel()} numbers): check "
            "where the weights come from"
        )


def check_outputs(net: nn.Module, x: Tensor, outputs: Tensor) -> None:
    """Raise an `SqError` if `outputs` of `net` for images `x` (B, ...) hold NaN; it says where."""
    if not torch.isnan(outputs).any():
        return
    infinite = []
    for name, tensor in _tensors(net):
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            infinite.append(name)
    origin = _origin_of_nan(net, x)
    if infinite:
        origin += f"; {infinite[0]} holds infinity"
    raise SqError(
        f"the outputs of {type(net).__name__} hold NaN: {origin}: check the weights, and that "
        "images are prepared as the network takes them"
    )


def _origin_of_nan(net: nn.Module, x: Tensor) -> str:
    """Return a clause on which module first returns NaN or infinity for finite inputs."""
    leaves = {
        name: module for name, module in net.named_modules() if name and not list(module.children())
    }
    inputs_finite: dict[str, bool] = {}
    origins: list[str] = []

    def before(name: str, module: nn.Module, x: Any) -> None:
        inputs_finite[name] = not isinstance(x, Tensor) or bool(torch.isfinite(x).all())

    def after(name: str, module: nn.Module, y: Any) -> None:
        if not isinstance(y, Tensor) or not inputs_finite.get(name, True):
            return
        if not torch.isfinite(y).all():
            origins.append(name)

    with torch.no_grad(), hooks.feeding(leaves, before), hooks.returning(leaves, after):
        forward(net, x)
    if origins:
        return f"{origins[0]} is the first that returns NaN or infinity"
    return "they arise between its modules"


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
