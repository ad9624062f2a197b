"""Copies of networks as users have them: wrapped, with weights that hooks compute, with tensors kept from a pass."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.prune import BasePruningMethod, remove
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from sq.errors import SqError, one_line
from sq.runtime import out_of_memory


def copied(net: nn.Module) -> nn.Module:
    """Return a deep copy of `net`, without what `torch.compile` and `DataParallel` put around its modules.

    Tensors that autograd computed (a weight that a hook sets, features kept from a pass) are copied
    as values, which `copy.deepcopy` alone refuses.

    Raises
    ------
    SqError : `net` is no module, or holds what cannot be copied, such as an open file
    """
    if not isinstance(net, nn.Module):
        raise SqError(f"the network should be a torch.nn.Module, got {type(net).__name__}")
    memo: dict[int, Any] = {id(tensor): tensor.detach().clone() for tensor in _computed(net)}
    try:
        # what is inside of another wrapper comes first
        for module in reversed(list(net.modules())):
            if (inner := _inner(module)) is not None:
                memo[id(module)] = copy.deepcopy(inner, memo)
        return copy.deepcopy(net, memo)
    except Exception as error:  # whatever the classes of its attributes raise
        if out_of_memory.is_out(error):  # which has another cure
            raise
        raise SqError(
            f"{type(net).__name__} cannot be copied ({one_line(error)[:160]}): remove what it holds beside parameters, "
            "buffers and modules"
        ) from error


def _inner(module: nn.Module) -> nn.Module | None:
    """Return the module that a wrapper hands its input to; None if `module` is no wrapper."""
    inner: Any = None
    # of torch.compile; its import would load the compiler
    if type(module).__name__ == "OptimizedModule":
        inner = module._orig_mod
    elif isinstance(module, nn.DataParallel | nn.parallel.DistributedDataParallel):
        inner = module.module
    return inner


def _computed(net: nn.Module) -> Iterator[Tensor]:
    """Yield the tensors held by modules of `net` that are results of autograd."""
    for module in net.modules():
        attributes = [
            value for name, value in vars(module).items() if name not in ("_modules", "_parameters")
        ]
        for tensor in _tensors(attributes, set()):
            if tensor.grad_fn is not None:
                yield tensor


def _tensors(values: Iterable[Any], seen: set[int]) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple | set | dict) and id(value) not in seen:
            seen.add(id(value))  # a container may hold itself
            yield from _tensors(value.values() if isinstance(value, dict) else value, seen)


def bake(net: nn.Module) -> None:
    """Make parameters of weights that hooks compute before each call, in place.

    They are those of `torch.nn.utils.weight_norm`, `spectral_norm` and `prune`, in the form that
    sets a plain attribute. In eval mode the network computes the same, to the bit.
    """
    for module in list(net.modules()):
        for hook in list(module._forward_pre_hooks.values()):
            if isinstance(hook, WeightNorm):
                nn.utils.remove_weight_norm(module, hook.name)
            elif isinstance(hook, SpectralNorm):
                nn.utils.remove_spectral_norm(module, hook.name)
            elif isinstance(hook, BasePruningMethod):
                remove(module, hook._tensor_name)


def channels_last(net: nn.Module) -> nn.Module:
    """Lay the weights of `net` out with their channels last, those of 2-D convolutions alone, in place; return it.

    ``net.to(memory_format=torch.channels_last)`` does the same, but refuses networks with a 3-D
    convolution.
    """

    def lay_out(tensor: Tensor) -> Tensor:
        return tensor.to(memory_format=torch.channels_last) if tensor.ndim == 4 else tensor

    return net._apply(lay_out)
