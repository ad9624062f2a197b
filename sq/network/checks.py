"""What a network must be before anything is computed with it: its tensors at hand, finite, and in float32."""

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


def check(net: nn.Module) -> None:
    """Raise an `SqError` that names the module or tensor, if `net` is not a network that can be quantized.

    It must be a module of Python code, run once if it has lazy layers, neither on the meta device
    nor quantized, with layers in float32, and with finite parameters and running statistics. No
    buffer may hold NaN; infinity may be a mask.
    """
    for name, module in net.named_modules():
        label = name or type(net).__name__
        kind = type(module)
        if isinstance(module, torch.jit.ScriptModule):
            raise SqError(
                f"{label} is a TorchScript module, whose layers cannot be changed: give the Python module that it was "
                "made from"
            )
        if ".quantized" in kind.__module__ and kind.__module__.startswith(
            ("torch.ao.nn", "torch.nn")
        ):
            raise SqError(
                f"{label} ({kind.__name__}) is quantized already: give the full-precision network"
            )
    for name, tensor in _tensors(net):
        _check_tensor(name, tensor)
    if hidden := _hidden(net):
        say(
            f"plain lists or dictionaries, where PyTorch does not see them, hold {quantity(hidden, 'module')} that "
            f"stay in full precision ({', '.join(hidden[:3])}): use nn.ModuleList or nn.ModuleDict"
        )
    for layer in geometry.find(net)[0]:
        dtype = geometry.weight(layer.module).dtype
        if dtype != torch.float32:
            raise SqError(
                f"the weight of layer {layer.name} is {_short(dtype)}; layers are quantized from float32: call "
                "net.float() first"
            )


def _hidden(net: nn.Module) -> list[str]:
    """Return where modules with parameters stand that are attributes of `net`, but none of its modules."""
    known = {id(module) for module in net.modules()}
    usual = vars(nn.Module())
    found: dict[int, str] = {}
    for name, module in net.named_modules():
        for attribute, value in vars(module).items():
            if attribute in usual:
                continue
            for place, one in _modules(f"{name}.{attribute}".lstrip("."), value, set()):
                if id(one) not in known and any(True for _ in one.parameters()):
                    found.setdefault(id(one), place)
    return list(found.values())


def _modules(place: str, value: Any, seen: set[int]) -> Iterator[tuple[str, nn.Module]]:
    """Yield the modules in an attribute, and where each stands; `seen` are the containers that were looked into."""
    if isinstance(value, nn.Module):
        yield place, value
    elif isinstance(value, list | tuple | dict) and id(value) not in seen:
        seen.add(id(value))  # a container may hold itself
        for key, one in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _modules(f"{place}[{key!r}]", one, seen)


def _tensors(net: nn.Module) -> list[tuple[str, Tensor]]:
    return [*net.named_parameters(), *net.named_buffers()]


def _check_tensor(name: str, tensor: Tensor) -> None:
    if is_lazy(tensor):
        raise SqError(
            f"{name} has no values yet, because its lazy layer has not seen an image: run the network once, train it "
            "or load its weights"
        )
    if tensor.is_meta:
        raise SqError(
            f"{name} is on the meta device, without values: load the weights (net.to_empty, then a state)"
        )
    if tensor.is_quantized:
        raise SqError(
            f"{name} is of {_short(tensor.dtype)}, quantized already: give the full-precision network"
        )
    if not tensor.is_floating_point():
        return
    strict = isinstance(tensor, nn.Parameter) or name.endswith(("running_mean", "running_var"))
    bad = ~torch.isfinite(tensor) if strict else torch.isnan(tensor)
    if bad.any():
        raise SqError(
            f"{name} holds NaN or infinity ({int(bad.sum())} of {tensor.numel()} numbers): check where the weights "
            "come from"
        )


def check_outputs(net: nn.Module, x: Tensor, outputs: Tensor) -> None:
    """Raise an `SqError` that says where NaN arises, if the `outputs` of `net` for images `x` (B, ...) hold any."""
    if not torch.isnan(outputs).any():
        return
    infinite = [
        name for name, t in _tensors(net) if t.is_floating_point() and not torch.isfinite(t).all()
    ]
    also = f"; {infinite[0]} holds infinity" if infinite else ""
    raise SqError(
        f"the outputs of {type(net).__name__} hold NaN: {_where(net, x)}{also}: check the weights, and that images are "
        "prepared as the network takes them"
    )


def _where(net: nn.Module, x: Tensor) -> str:
    """Say which module is the first that returns NaN or infinity and was given none."""
    finite: dict[str, bool] = {}
    guilty: list[str] = []
    leaves = {
        name: module for name, module in net.named_modules() if name and not list(module.children())
    }

    def given(name: str, module: nn.Module, x: Any) -> None:
        finite[name] = not isinstance(x, Tensor) or bool(torch.isfinite(x).all())

    def returned(name: str, module: nn.Module, y: Any) -> None:
        if isinstance(y, Tensor) and finite.get(name, True) and not torch.isfinite(y).all():
            guilty.append(name)

    with torch.no_grad(), hooks.feeding(leaves, given), hooks.returning(leaves, returned):
        forward(net, x)
    return (
        f"{guilty[0]} is the first that returns NaN or infinity"
        if guilty
        else "they arise between its modules"
    )


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
