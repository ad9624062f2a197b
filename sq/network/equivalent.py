"""Find the plain layer that computes the same as a module, from the functions the module calls."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sq.network import geometry
from sq.network.attention import linear_layer, set_parameters
from sq.network.products import LINEAR, Calls, Product, product, run
from sq.runtime import out_of_memory

# By number of spatial axes.
CONVOLUTION_CLASSES: dict[int, type[nn.Module]] = {1: nn.Conv1d, 2: nn.Conv2d}


def random_inputs(module: nn.Module, x: Tensor) -> Tensor | None:
    """Return inputs for a layer that no pass calls, None if its class does not tell their shape.

    Type and device are those of its parameters, or of `x` if it has none.
    """
    shape: tuple[int, ...]
    if isinstance(module, nn.Linear):
        shape = (2, module.in_features)
    elif isinstance(module, nn.Conv1d | nn.Conv2d):
        sizes = []
        for dilation, kernel in zip(module.dilation, module.kernel_size, strict=True):
            reach = dilation * (kernel - 1)  # of the kernel, beyond its first tap
            sizes.append(2 * reach + 4)
        shape = (2, module.in_channels, *sizes)
    else:
        return None
    like = next(iter(module.parameters()), x)
    return noise(shape, like)


def noise(shape: tuple[int, ...], like: Tensor) -> Tensor:
    """Return a fixed standard normal tensor of this shape, with the type and device of `like`."""
    generator = torch.Generator().manual_seed(len(shape))
    values = torch.randn(shape, generator=generator, dtype=torch.float64)
    return values.to(like.device, like.dtype)


def find(module: nn.Module, x: Tensor) -> nn.Module | None:
    """Return a plain layer that computes the same as `module`, None if there is none.

    Parameters
    ----------
    x : an input of the module
    """
    first = _single_product(module, x)
    if first is None:
        return None
    result = _product_on_other_inputs(module, x, first)
    if result is None:
        return None
    other, second = result
    if not (torch.equal(first.weight, second.weight) and same(first.bias, second.bias)):
        return None
    for layer in _candidates(module, x, first):
        if _same_inputs(layer, x, first) and _same_inputs(layer, other, second):
            return layer.train(module.training)
    return None


def _product_on_other_inputs(
    module: nn.Module, x: Tensor, first: Product
) -> tuple[Tensor, Product] | None:
    """Return other inputs than `x` and the product that `module` computes for them.

    There is one more of them, and each is larger if the module takes that: weight and padding must
    not depend on the inputs.
    """
    sizes = tuple(x.shape[2:])
    larger_sizes = tuple(size + 1 for size in sizes) if first.axes else sizes
    leading = (len(x) + 1, x.shape[1]) if x.ndim > 1 else tuple(x.shape)
    for shape in ((*leading, *larger_sizes), (*leading, *sizes)):
        other = noise(shape, x)
        second = _single_product(module, other)
        if second is not None:
            return other, second
    return None


def same(first: Tensor | None, second: Tensor | None) -> bool:
    """Return whether both are None, or equal."""
    if first is None or second is None:
        return first is second
    return first is second or torch.equal(first, second)


def _single_product(module: nn.Module, x: Tensor) -> Product | None:
    """Return the one product that `module` computes and returns, None if it does more or less."""
    products: list[Product] = []

    def record(
        func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], result: Any
    ) -> None:
        call = product(func, args, kwargs, result)
        if call is not None:
            products.append(call)

    try:
        with Calls(record):
            result = run(module, x)
    except Exception as error:
        # A module that takes several tensors, or of other shapes, may raise anything.
        if out_of_memory.is_out(error):
            raise
        return None
    if len(products) != 1 or not isinstance(result, Tensor):
        return None
    returned = products[0].result
    if result.dtype != returned.dtype or not torch.equal(result, returned):
        return None
    return products[0]


def _candidates(module: nn.Module, x: Tensor, call: Product) -> Iterator[nn.Module]:
    """Yield layers with the weight of the product `call`, one for each way to pad `x`."""
    if call.function is LINEAR:
        yield linear_layer(call.weight, call.bias)
        return
    # The product pads by itself. For another class of module, "same" may stand for its own rule.
    if call.padding != "same" or isinstance(module, nn.Conv1d | nn.Conv2d):
        yield _convolution(call, call.padding)
    # The module has padded before the product, with another mode than zeros.
    if isinstance(module, nn.Conv1d | nn.Conv2d) and module.padding_mode != "zeros":
        padding = module.padding if isinstance(module.padding, str) else tuple(module.padding)
        yield _convolution(call, padding, module.padding_mode)
    # The module has padded with zeros before the product, alike on both sides.
    if isinstance(call.padding, tuple):
        symmetric = _symmetric_padding(call, call.padding, x)
        if symmetric is not None:
            yield _convolution(call, symmetric)
    if call.axes == 2:
        yield _convolution(call, 0, kind=geometry.Conv2dSame)


def _symmetric_padding(
    call: Product, padding: tuple[int, ...], x: Tensor
) -> tuple[int, ...] | None:
    """Return the padding of the product plus what was added to `x` before it; None if uneven."""
    if call.inputs.ndim != call.axes + 2 or x.ndim != call.axes + 2:
        return None  # the module has reshaped its input
    total = []
    sizes = zip(padding, call.inputs.shape[2:], x.shape[2:], strict=True)
    for own_padding, padded_size, size in sizes:
        added = padded_size - size
        if added < 0 or added % 2:
            return None
        total.append(own_padding + added // 2)
    return tuple(total)


def _convolution(
    call: Product, padding: Any, mode: str = "zeros", kind: type[nn.Module] | None = None
) -> nn.Module:
    """Return a convolution with weight, bias and settings of `call`, but with this padding."""
    if kind is None:
        kind = CONVOLUTION_CLASSES[call.axes]
    channels = call.weight.shape[1] * call.groups
    outputs = call.weight.shape[0]
    layer = kind(
        channels,
        outputs,
        tuple(call.weight.shape[2:]),
        stride=call.stride,
        padding=padding,
        dilation=call.dilation,
        groups=call.groups,
        padding_mode=mode,
        bias=call.bias is not None,
        device="meta",  # no weight is initialised only to be replaced
    )
    set_parameters(layer, call.weight, call.bias)
    return layer


def _same_inputs(layer: nn.Module, x: Tensor, call: Product) -> bool:
    """Return whether `layer` multiplies exactly the inputs of `call` for the module input `x`."""
    if call.inputs.dtype != x.dtype:
        return False
    if call.function is LINEAR:
        return torch.equal(call.inputs, x)
    if call.inputs.ndim != call.axes + 2 or x.ndim != call.axes + 2:
        return False
    assert isinstance(layer, nn.Conv1d | nn.Conv2d)
    try:
        expected = _padded_inputs(call)
        padded = geometry.padded(layer, x)[0].reshape(-1)
    except RuntimeError:  # "reflect" padding that is wider than the input
        return False
    return padded.shape == expected.shape and torch.equal(padded, expected)


def _padded_inputs(call: Product) -> Tensor:
    """Return the inputs of a convolution with the zeros that its own argument adds, flat."""
    kernel = call.weight.shape[2:]
    sizes: list[int] = []  # in the order of F.pad: last axis first
    for axis in reversed(range(call.axes)):
        if call.padding == "valid":
            sizes += [0, 0]
        elif call.padding == "same":
            total = call.dilation[axis] * (kernel[axis] - 1)
            sizes += [total // 2, total - total // 2]
        else:
            assert isinstance(call.padding, tuple)
            sizes += [call.padding[axis]] * 2
    return F.pad(call.inputs, sizes).reshape(-1)
