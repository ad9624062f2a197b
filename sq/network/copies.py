"""Copies of networks, also of wrapped ones and of those that hold results of autograd."""

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
    """Return a deep copy of `net`, without the wrappers of `torch.compile` and `DataParallel`.

    Tensors that autograd computed (a weight that a hook sets, features stored in a pass) are copied
    as values. `copy.deepcopy` alone refuses them.

    Raises
    ------
    SqError : `net` is no module, or holds what cannot be copied, such as an open file
    """
    if not isinstance(net, nn.Module):
        raise SqError(f"the network should be a torch.nn.Module, got {type(net).__name__}")
    memo: dict[int, Any] = {id(tensor): tensor.detach().clone() for tensor in _computed(net)}
    try:
        # In reverse, so that the inner one of two nested wrappers comes first.
        for module in reversed(list(net.modules())):
            wrapped = _wrapped(module)
            if wrapped is not None:
                memo[id(module)] = copy.deepcopy(wrapped, memo)
        return copy.deepcopy(net, memo)
    except Exception as error:  # the classes of its attributes may raise anything
        if out_of_memory.is_out(error):  # has a message of its own
            raise
        raise SqError(
            f"{type(net).__name__} cannot be copied ({one_line(error)[:160]}): remove what it "
            "holds beside parameters, buffers and modules"
        ) from error


def _wrapped(module: nn.Module) -> nn.Module | None:
    """Return the module that a wrapper passes its input to; None if `module` is no wrapper."""
    wrapped: Any = None
    # By name: importing the class of `torch.compile` would load the compiler.
    if type(module).__name__ == "OptimizedModule":
        wrapped = module._orig_mod
    elif isinstance(module, nn.DataParallel | nn.parallel.DistributedDataParallel):
        wrapped = module.module
    return wrapped


def _computed(net: nn.Module) -> Iterator[Tensor]:
    """Yield the tensors held by modules of `net` that are results of autograd."""
    for module in net.modules():
        attributes = [
            value for name, value in vars(module).items() if name not in ("_modules", "_parameters")
        ]
        for tensor in _tensors(attributes, set()):
            if tensor.grad_fn is not None:
                yield tensor


def _tensors(values: Iterable[Any], visited: set[int]) -> Iterator[Tensor]:
    """Yield the tensors in `values` and in containers among them.

    `visited` holds the ids of the containers seen so far: a container may hold itself.
    """
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple | set | dict) and id(value) not in visited:
            visited.add(id(value))
            items = value.values() if isinstance(value, dict) else value
            yield from _tensors(items, visited)


def bake(net: nn.Module) -> None:
    """Turn weights that hooks compute before each call into parameters, in place.

    The hooks are those of `torch.nn.utils.weight_norm`, `spectral_norm` and `prune` that set a
    plain attribute. In eval mode the outputs stay the same, to the bit.
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
    """Store the weights of 2-D convolutions channels last in memory, in place; return `net`.

    ``net.to(memory_format=torch.channels_last)`` does the same, but refuses networks with a 3-D
    convolution.
    """

    def convert(tensor: Tensor) -> Tensor:
        return tensor.to(memory_format=torch.channels_last) if tensor.ndim == 4 else tensor

    return net._apply(convert)
