"""Observe the PyTorch functions that a network calls, and those that multiply weights with inputs.

Under `Calls`, each call of a PyTorch function is reported with its arguments and its result.
`product` reads the calls that multiply a weight with inputs: `F.linear`, `F.conv1d` and `F.conv2d`.
"""

from __future__ import annotations

import inspect
import math
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from sq.network.forward import forward

LINEAR = F.linear
CONVOLUTIONS = {F.conv1d: 1, F.conv2d: 2}  # with their number of spatial axes

# see(function, args, kwargs, result)
See = Callable[[Callable[..., Any], "tuple[Any, ...]", "dict[str, Any]", Any], None]


class _FunctionMode(TorchFunctionMode):
    """Calls `call` in place of each PyTorch function; it is not active within `call`."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        kinds: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Return what `call` returns."""
        return self.call(func, args, dict(kwargs or {}))

    def call(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Return the result to use for ``func(*args, **kwargs)``."""
        raise NotImplementedError


class Calls(_FunctionMode):
    """While active, calls ``see(function, args, kwargs, result)`` after each PyTorch function."""

    def __init__(self, see: See):
        super().__init__()
        self.see = see

    def call(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call `func` and report it."""
        result = func(*args, **kwargs)
        self.see(func, args, kwargs, result)
        return result


@dataclass(frozen=True)
class Product:
    """One call of `F.linear`, `F.conv1d` or `F.conv2d`: operands, settings and result."""

    function: Callable[..., Any]
    inputs: Tensor
    weight: Tensor
    bias: Tensor | None
    stride: tuple[int, ...]
    padding: tuple[int, ...] | str
    dilation: tuple[int, ...]
    groups: int
    result: Tensor

    @property
    def axes(self) -> int:
        """Return the number of spatial axes: 0 for a linear product."""
        return CONVOLUTIONS.get(self.function, 0)


def product(
    func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Any
) -> Product | None:
    """Return the product that this call of `func` computes, None if it is another function."""
    if func is not LINEAR and func not in CONVOLUTIONS:
        return None
    # in the order of the functions' parameters
    names = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
    arguments = dict(zip(names, args, strict=False)) | dict(kwargs)
    axes = CONVOLUTIONS.get(func, 0)
    padding = arguments.get("padding", 0)
    return Product(
        func,
        arguments["input"],
        arguments["weight"],
        arguments.get("bias"),
        _per_axis(arguments.get("stride", 1), axes),
        padding if isinstance(padding, str) else _per_axis(padding, axes),
        _per_axis(arguments.get("dilation", 1), axes),
        int(arguments.get("groups", 1)),
        result,
    )


def _per_axis(value: int | Sequence[int], axes: int) -> tuple[int, ...]:
    """Return a setting of a convolution for each axis; PyTorch takes one number for all."""
    if isinstance(value, int):
        return (value,) * axes
    if len(value) == 1:
        return tuple(value) * axes
    return tuple(value)


def tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    """Yield every tensor in `values`, in lists, tuples and dicts too."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from tensors(value)
        elif isinstance(value, dict):
            yield from tensors(value.values())


class Redirected:
    """A module's forward in which `layers` themselves compute the products with their weights.

    Some modules read a layer's weight and call `F.linear` with it, so that hooks of the layer, by
    which inputs are observed and quantized, see nothing. It replaces the module's `forward`.
    """

    def __init__(self, forward: Callable[..., Any], layers: list[nn.Linear]):
        self.forward = forward
        self.layers = layers

    @property
    def __signature__(self) -> inspect.Signature:
        """Return that of the module's forward, which `torch.export` asks for."""
        return inspect.signature(self.forward)

    @property
    def __code__(self) -> types.CodeType:
        """Return that of the module's forward, which `torch.export` asks for."""
        return self.forward.__code__

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the module."""
        with _Redirect(self.layers):
            return self.forward(*args, **kwargs)


class _Redirect(_FunctionMode):
    def __init__(self, layers: list[nn.Linear]):
        super().__init__()
        self.layers = layers

    def call(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call the layer with this weight if there is one, else `func`."""
        if func is not LINEAR:
            return func(*args, **kwargs)
        weight = args[1] if len(args) > 1 else kwargs["weight"]
        for layer in self.layers:
            if layer.weight is weight:
                # The mode is off here, so the layer's own product is not redirected.
                return layer(args[0] if args else kwargs["input"])
        return func(*args, **kwargs)


def run(net: nn.Module, x: Tensor) -> Any:
    """Return the outputs of `net` for a copy of `x`, without gradients and with a fixed seed."""
    devices = [x.device] if x.device.type == "cuda" else []
    with torch.no_grad(), torch.random.fork_rng(devices):
        torch.manual_seed(0)
        return forward(net, x)


def _shapes(tensors: list[Tensor]) -> list[torch.Size]:
    return [tensor.shape for tensor in tensors]


def distance(outputs: Any, reference: Any) -> float:
    """Return the relative squared error of `outputs`, inf if they are of another structure.

    NaN and infinity count as equal where both have them.
    """
    output_tensors = list(tensors([outputs]))
    reference_tensors = list(tensors([reference]))
    if _shapes(output_tensors) != _shapes(reference_tensors):
        return math.inf
    error = norm = 0.0
    for output, target in zip(output_tensors, reference_tensors, strict=True):
        output, target = output.double(), target.double()
        zeros = torch.zeros_like(target)
        equal = (output == target) | (output.isnan() & target.isnan())
        error += float((output - target).square().where(~equal, zeros).sum())
        norm += float(target.square().where(target.isfinite(), zeros).sum())
    if math.isnan(error):  # NaN on one side only
        return math.inf
    return error / max(norm, torch.finfo(torch.float64).tiny)
