"""The plain layer that computes what a module computes, seen by what the module calls."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sq.network import geometry
from sq.network.attention import linear, parameter
from sq.network.products import LINEAR, Calls, Product, product, run
from sq.runtime import out_of_memory


def inputs_for(module: nn.Module, x: Tensor) -> Tensor | None:
    """Return inputs for a layer that is not called, None if its class does not tell their shape."""
    if isinstance(module, nn.Linear):
        shape: tuple[int, ...] = (2, module.in_features)
    elif isinstance(module, nn.Conv1d | nn.Conv2d):
        reach = (d * (k - 1) for d, k in zip(module.dilation, module.kernel_size, strict=True))
        shape = (2, module.in_channels, *(2 * r + 4 for r in reach))
    else:
        return None
    like = next(iter(module.parameters()), x)
    return noise(shape, like)


def noise(shape: tuple[int, ...], like: Tensor) -> Tensor:
    """Return a standard normal tensor of this shape, always the same, where and of what `like` is."""
    drawn = torch.randn(
        shape, generator=torch.Generator().manual_seed(len(shape)), dtype=torch.float64
    )
    return drawn.to(like.device, like.dtype)


def of(module: nn.Module, x: Tensor) -> nn.Module | None:
    """Return a plain layer that computes what `module` does, None if none does."""
    first = _single_product(module, x)
    if first is None:
        return None
    # Other inputs, one more of them, and of another size where the module takes that: the weight
    # must be the same, and so the padding.
    larger = tuple(n + 1 for n in x.shape[2:]) if first.axes else tuple(x.shape[2:])
    leading = (len(x) + 1, x.shape[1]) if x.ndim > 1 else tuple(x.shape)
    for shape in ((*leading, *larger), (*leading, *x.shape[2:])):
        if (second := _single_product(module, other := noise(shape, x))) is not None:
            break
    else:
        return None
    if not (torch.equal(first.weight, second.weight) and same(first.bias, second.bias)):
        return None
    for new in _candidates(module, x, first):
        if _computes(new, x, first) and _computes(new, other, second):
            return new.train(module.training)
    return None


def same(left: Tensor | None, right: Tensor | None) -> bool:
    """Tell whether both are None, or equal."""
    return left is right or (left is not None and right is not None and torch.equal(left, right))


def _single_product(module: nn.Module, x: Tensor) -> Product | None:
    """Return the one product that `module` computes and returns, None if it does more or less."""
    seen: list[Product] = []

    def see(
        func: Callable[..., Any], args: tuple[Any, ...], named: dict[str, Any], result: Any
    ) -> None:
        if (own := product(func, args, named, result)) is not None:
            seen.append(own)

    try:
        with Calls(see):
            result = run(module, x)
    except Exception as error:
        # whatever a module raises that takes more than one tensor, or other ones
        if out_of_memory.is_out(error):
            raise
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
            yield _convolution(
                own, tuple(p + n // 2 for p, n in zip(own.padding, wider, strict=True))
            )
    if own.axes == 2:
        yield _convolution(own, 0, kind=geometry.Conv2dSame)


def _convolution(
    own: Product, padding: Any, mode: str = "zeros", kind: type[nn.Module] | None = None
) -> nn.Module:
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
    new._parameters["bias"] = None if own.bias is None else parameter(own.bias)
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
        padded = geometry.padded(new, x)[0].reshape(-1)
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
