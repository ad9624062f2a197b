"""Layer geometry, in one place: a layer's weight as (G, O, I) and its inputs as (G, I, N).

With these two views every layer is ``outputs = weight @ inputs`` (bias apart), so no other file
asks whether a layer is dense, grouped, depthwise, 1x1 or linear.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrize import is_parametrized

from sq.types.problem import Layer

Quantizable = (nn.Conv1d, nn.Conv2d, nn.Linear)
FORWARDS = tuple(kind.forward for kind in Quantizable)
CONVOLUTIONS = (nn.Conv1d._conv_forward, nn.Conv2d._conv_forward)


class Conv2dSame(nn.Conv2d):
    """A convolution with TensorFlow's "SAME" padding, which depends on the size of the input; `padding` is not used."""

    def forward(self, input: Tensor) -> Tensor:
        """Return the outputs, one for every `stride` pixels."""
        x = F.pad(input, _same_padding(self, input))
        return F.conv2d(x, self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


def find(net: nn.Module) -> tuple[list[Layer], list[str]]:
    """List the layers of `net` that can be quantized, and the names of those that cannot.

    A module reused under several names counts once, under its first. What "cannot" holds is
    every other module with a weight of two or more axes: embeddings, transposed convolutions,
    layers whose weight is computed or shared, subclasses that compute something else in their own
    `forward`.
    """
    layers: list[Layer] = []
    skipped: list[str] = []
    owner: dict[int, str] = {}  # layer name by the identity of its weight
    for name, module in net.named_modules():
        if (own := _own_weight(module)) is None:
            continue
        kind = type(module).__name__
        if not isinstance(module, Quantizable):
            skipped.append(f"{name} ({kind})")
        elif not is_plain(module):
            skipped.append(f"{name} ({kind}: not computed as weight times inputs)")
        elif id(own) in owner:
            skipped.append(f"{name} ({kind}: shares the weight of {owner[id(own)]})")
        else:
            owner[id(own)] = name
            groups, outputs, inputs = weight(module).shape
            layers.append(Layer(name, module, _kind(module), groups, outputs, inputs))
    return layers, skipped


def is_plain(module: nn.Module) -> bool:
    """Tell whether `module` is known to compute its weight times its inputs, plus its bias, and nothing else.

    It goes by the functions its class computes with. `sq.network.plain_layers` replaces others by
    such modules, where what they compute is the same.
    """
    if not isinstance(module, Quantizable) or not isinstance(
        module._parameters.get("weight"), Tensor
    ):
        return False
    if "forward" in module.__dict__ or is_parametrized(module):
        return False
    if _pads_same(module):
        return True
    convolves = getattr(type(module), "_conv_forward", None)
    return type(module).forward in FORWARDS and convolves in (None, *CONVOLUTIONS)


def _own_weight(module: nn.Module) -> Tensor | None:
    own = module.weight if is_parametrized(module, "weight") else module._parameters.get("weight")
    return own if isinstance(own, Tensor) and own.ndim > 1 else None


def weight(module: nn.Module) -> Tensor:
    """Return the weight of `module` as (G, O, I), a view, detached."""
    own = _weight(module)
    groups = module.groups if isinstance(module, nn.Conv1d | nn.Conv2d) else 1
    return own.detach().reshape(groups, own.shape[0] // groups, -1)


def set_weight(module: nn.Module, values: Tensor) -> None:
    """Copy `values` (G, O, I) into the weight of `module`."""
    own = _weight(module)
    with torch.no_grad():
        own.copy_(values.reshape(own.shape))


def batched(module: nn.Module, x: Tensor) -> Tensor:
    """Return what `module` is fed or returns with an axis of images, a single image (C, H, W) as (1, C, H, W)."""
    axes = 2 if isinstance(module, nn.Linear) else _weight(module).ndim
    return x.unsqueeze(0) if x.ndim < axes else x


def inputs(module: nn.Module, x: Tensor) -> Tensor:
    """Return the inputs of `module` for `x`, as (G, I, N), so that outputs are ``weight @ inputs``.

    Parameters
    ----------
    module : a convolution (1-D, 2-D; any stride, dilation, groups, padding, padding mode) or linear
    x : what the module is called with: (B, C, L), (B, C, H, W), or (..., I) for a linear layer

    Raises
    ------
    TypeError : for another kind of module
    """
    if isinstance(module, nn.Linear):
        return x.reshape(-1, module.in_features).T.unsqueeze(0)
    if not isinstance(module, nn.Conv1d | nn.Conv2d):
        raise TypeError(
            f"no geometry for {type(module).__name__}; known: {[k.__name__ for k in Quantizable]}"
        )
    x, window = padded(module, x)
    # (B, G*I, L)
    columns = F.unfold(x, window.kernel, dilation=window.dilation, stride=window.stride)
    return columns.unflatten(1, (module.groups, -1)).permute(1, 2, 0, 3).flatten(2)


class Window(NamedTuple):
    """How a convolution's kernel lies on its padded input: (vertical, horizontal), but for `blank`."""

    kernel: tuple[int, int]
    dilation: tuple[int, int]
    stride: tuple[int, int]
    blank: tuple[int, int]  # rows of zeros that padding has put above and below


def padded(module: nn.Conv1d | nn.Conv2d, x: Tensor) -> tuple[Tensor, Window]:
    """Return the input `x` of a convolution, padded as it pads, (B, C, H, W), and how its kernel lies on that.

    A 1-D convolution is a 2-D one of width 1.
    """
    # PyTorch resolves "same" and integer padding to this one list, in F.pad's order, for every
    # mode.
    padding = (
        _same_padding(module, x) if _pads_same(module) else module._reversed_padding_repeated_twice
    )
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    x = F.pad(x, padding, mode=mode)
    blank = _pair(padding[-2:]) if mode == "constant" else (0, 0)
    if isinstance(module, nn.Conv1d):
        (kernel,), (dilation,), (stride,) = module.kernel_size, module.dilation, module.stride
        return x.unsqueeze(3), Window((kernel, 1), (dilation, 1), (stride, 1), blank)
    return x, Window(_pair(module.kernel_size), _pair(module.dilation), _pair(module.stride), blank)


def _pads_same(module: nn.Module) -> bool:
    """Tell whether `module` is a Conv2dSame, ours or timm's: it differs from a convolution in its padding alone."""
    kind = type(module)
    return kind is Conv2dSame or (kind.__module__, kind.__name__) == (
        "timm.layers.conv2d_same",
        "Conv2dSame",
    )


def _same_padding(module: nn.Conv1d | nn.Conv2d, x: Tensor) -> list[int]:
    """Return TensorFlow's "SAME" padding for input `x`, in F.pad's order: it depends on the size of the input."""
    padding: list[int] = []
    sizes = zip(x.shape[2:], module.kernel_size, module.dilation, module.stride, strict=True)
    for size, kernel, dilation, stride in reversed(list(sizes)):
        total = max((-(-size // stride) - 1) * stride + (kernel - 1) * dilation + 1 - size, 0)
        padding += [total // 2, total - total // 2]
    return padding


def _pair(sizes: Sequence[int]) -> tuple[int, int]:
    vertical, horizontal = sizes
    return vertical, horizontal


def positions(module: nn.Module, output: Tensor) -> int:
    """Return N for one call of `module`, given what it returned: images times output pixels."""
    return output.numel() // _weight(module).shape[0]


def channel_axis(module: nn.Module) -> int:
    """Return the axis of channels in what `module` is fed and returns: the last of a linear layer, else the second."""
    return -1 if isinstance(module, nn.Linear) else 1


def channels_second(module: nn.Module, output: Tensor) -> Tensor:
    """Return what `module` returned with its channels on the second axis, see `channel_axis`."""
    return batched(module, output).movedim(channel_axis(module), 1)


def channels(module: nn.Module, output: Tensor) -> int:
    """Return how many channels are in what `module` returned: see `channels_second`."""
    return channels_second(module, output).shape[1]


def taps(module: nn.Module) -> int:
    """Return how many taps a kernel of `module` has; 1 for a linear layer."""
    return _weight(module)[0, 0].numel()


def _weight(module: nn.Module) -> Tensor:
    own = module.weight
    assert isinstance(own, Tensor)
    return own


def _kind(module: nn.Module) -> str:
    if isinstance(module, nn.Linear):
        return "linear"
    assert isinstance(module, nn.Conv1d | nn.Conv2d)
    taps = "x".join(str(size) for size in module.kernel_size)
    if module.groups == 1:
        return taps
    return f"{taps} depthwise" if module.groups == module.in_channels else f"{taps} grouped"
