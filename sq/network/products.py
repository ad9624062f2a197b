"""Products of a weight and inputs, seen where PyTorch's functions are called.

Under `Calls`, every call of a PyTorch function is reported with its arguments and its result.
`product` reads the calls that multiply a weight with inputs: `F.linear`, `F.conv1d` and `F.conv2d`.
"""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from sq.network.forward import forward

LINEAR = F.linear
CONVOLUTIONS = {F.conv1d: 1, F.conv2d: 2}  # with their number of spatial axes

See = Callable[[Callable[..., Any], "tuple[Any, ...]", "dict[str, Any]", Any], None]


class _Functions(TorchFunctionMode):
    """While active, `call` is asked for what each PyTorch function returns; it is not active within that."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        kinds: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Return what `call` does."""
        return self.call(func, args, dict(kwargs or {}))

    def call(self, func: Callable[..., Any], args: tuple[Any, ...], named: dict[str, Any]) -> Any:
        """Return what stands for ``func(*args, **named)``."""
        raise NotImplementedError


class Calls(_Functions):
    """While active, calls ``see(function, args, kwargs, result)`` after each PyTorch function."""

    def __init__(self, see: See):
        super().__init__()
        self.see = see

    def call(self, func: Callable[..., Any], args: tuple[Any, ...], named: dict[str, Any]) -> Any:
        """Call `func` and report it."""
        result = func(*args, **named)
        self.see(func, args, named, result)
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
    func: Callable[..., Any], args: tuple[Any, ...], named: Mapping[str, Any], result: Any
) -> Product | None:
    """Return the product that this call of `func` is, None if it is none."""
    if func is not LINEAR and func not in CONVOLUTIONS:
        return None
    names = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
    given = dict(zip(names, args, strict=False)) | dict(named)
    axes = CONVOLUTIONS.get(func, 0)

    def sizes(name: str, default: int) -> tuple[int, ...]:
        value = given.get(name, default)
        if isinstance(value, int):
            return (value,) * axes
        return tuple(value) * (axes if len(value) == 1 else 1)

    padding = given.get("padding", 0)
    return Product(
        func,
        given["input"],
        given["weight"],
        given.get("bias"),
        sizes("stride", 1),
        padding if isinstance(padding, str) else sizes("padding", 0),
        sizes("dilation", 1),
        int(given.get("groups", 1)),
        result,
    )


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
    """A module's forward in which products with weights of `layers` are computed by these.

    Some modules read a layer's weight and call `F.linear` with it: hooks of the layer, by which
    inputs are observed and quantized, would see nothing. It stands in the place of the module's
    `forward`.
    """

    def __init__(self, forward: Callable[..., Any], layers: list[nn.Linear]):
        self.forward = forward
        self.layers = layers

    @property
    def __signature__(self) -> inspect.Signature:
        """Return that of the module's forward, as `torch.export` asks for it."""
        return inspect.signature(self.forward)

    @property
    def __code__(self) -> types.CodeType:
        """Return that of the module's forward, as `torch.export` asks for it."""
        return self.forward.__code__

    def __call__(self, *args: Any, **named: Any) -> Any:
        """Run the module."""
        with _Redirect(self.layers):
            return self.forward(*args, **named)


class _Redirect(_Functions):
    def __init__(self, layers: list[nn.Linear]):
        super().__init__()
        self.layers = layers

    def call(self, func: Callable[..., Any], args: tuple[Any, ...], named: dict[str, Any]) -> Any:
        """Call the layer whose weight this is, or `func`."""
        if func is LINEAR:
            weight = args[1] if len(args) > 1 else named["weight"]
            for layer in self.layers:
                if layer.weight is weight:
                    # The mode is off here, so that the layer's own product is not redirected.
                    return layer(args[0] if args else named["input"])
        return func(*args, **named)


def run(net: nn.Module, x: Tensor) -> Any:
    """Return what `net` makes of a copy of `x`, without gradients and with one random seed.

    The copy is for networks that change their input in place.
    """
    devices = [x.device] if x.device.type == "cuda" else []
    with torch.no_grad(), torch.random.fork_rng(devices):
        torch.manual_seed(0)
        return forward(net, x)


def distance(outputs: Any, reference: Any) -> float:
    """Return the relative squared error of `outputs`, inf if they are of another structure.

    NaN and infinity count as equal where both have them.
    """
    left, right = list(tensors([outputs])), list(tensors([reference]))
    if [own.shape for own in left] != [own.shape for own in right]:
        return float("inf")
    error = norm = 0.0
    for own, other in zip(left, right, strict=True):
        own, other = own.double(), other.double()
        alike = (own == other) | (own.isnan() & other.isnan())
        error += float((own - other).square().where(~alike, torch.zeros_like(own)).sum())
        norm += float(other.square().where(other.isfinite(), torch.zeros_like(other)).sum())
    if error != error:  # NaN on one side only
        return float("inf")
    return error / max(norm, torch.finfo(torch.float64).tiny)
