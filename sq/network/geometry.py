"""Layer geometry: a layer's weight as (G, O, I) and its inputs as (G, I, N).

With these two views every layer is ``outputs = weight @ inputs`` plus its bias, so no other file
needs to know whether a layer is dense, grouped, depthwise, 1x1 or linear.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrize import is_parametrized

from sq.types.problem import Layer

QUANTIZABLE = (nn.Conv1d, nn.Conv2d, nn.Linear)
# The functions that plain layers compute with.
FORWARDS = (nn.Conv1d.forward, nn.Conv2d.forward, nn.Linear.forward)
CONVOLUTIONS = (nn.Conv1d._conv_forward, nn.Conv2d._conv_forward)


class Conv2dSame(nn.Conv2d):
    """A convolution with TensorFlow's "SAME" padding, by the input's size; `padding` is unused."""

    def forward(self, input: Tensor) -> Tensor:
        """Return the outputs, one for every `stride` pixels."""
        x = F.pad(input, _same_padding(self, input))
        return F.conv2d(x, self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


def find(net: nn.Module) -> tuple[list[Layer], list[str]]:
    """Return the layers of `net` that can be quantized, and ``name (reason)`` of those that cannot.

    A module with several names counts once, under its first. The second list has all other modules
    with a weight of two or more axes: embeddings, transposed convolutions, layers whose weight is
    computed or shared, subclasses that compute something else in their own `forward`.
    """
    layers: list[Layer] = []
    skipped: list[str] = []
    first_users: dict[int, str] = {}  # layer name by the identity of its weight
    for name, module in net.named_modules():
        matrix = _weight_matrix(module)
        if matrix is None:
            continue
        kind = type(module).__name__
        if not isinstance(module, QUANTIZABLE):
            skipped.append(f"{name} ({kind})")
        elif not is_plain(module):
            skipped.append(f"{name} ({kind}: not computed as weight times inputs)")
        elif id(matrix) in first_users:
            skipped.append(f"{name} ({kind}: shares the weight of {first_users[id(matrix)]})")
        else:
            first_users[id(matrix)] = name
            groups, outputs, inputs = weight(module).shape
            layers.append(Layer(name, module, _kind(module), groups, outputs, inputs))
    return layers, skipped


def is_plain(module: nn.Module) -> bool:
    """Return whether `module` is known to compute exactly weight times inputs plus bias.

    It depends on the functions that its class computes with. `sq.network.plain_layers` replaces
    other modules by plain ones that compute the same, if there are any.
    """
    if not isinstance(module, QUANTIZABLE):
        return False
    if not isinstance(module._parameters.get("weight"), Tensor):
        return False
    if "forward" in module.__dict__ or is_parametrized(module):
        return False
    if _pads_same(module):
        return True
    conv_forward = getattr(type(module), "_conv_forward", None)
    return type(module).forward in FORWARDS and conv_forward in (None, *CONVOLUTIONS)


def _weight_matrix(module: nn.Module) -> Tensor | None:
    """Return the module's own weight if it has two or more axes, computed ones included."""
    matrix: Any = module._parameters.get("weight")
    if is_parametrized(module, "weight"):
        matrix = module.weight  # computed here
    if not isinstance(matrix, Tensor) or matrix.ndim < 2:
        return None
    return matrix


def weight(module: nn.Module) -> Tensor:
    """Return the weight of `module` as (G, O, I), a view, detached."""
    values = _weight(module).detach()
    groups = module.groups if isinstance(module, nn.Conv1d | nn.Conv2d) else 1
    return values.reshape(groups, values.shape[0] // groups, -1)


def set_weight(module: nn.Module, values: Tensor) -> None:
    """Copy `values` (G, O, I) into the weight of `module`."""
    parameter = _weight(module)  # (G * O, inputs of a group, taps)
    with torch.no_grad():
        parameter.copy_(values.reshape(parameter.shape))


def batched(module: nn.Module, x: Tensor) -> Tensor:
    """Return the input or output `x` of `module` with a batch axis: (C, H, W) as (1, C, H, W)."""
    axes = 2 if isinstance(module, nn.Linear) else _weight(module).ndim
    if x.ndim < axes:
        return x.unsqueeze(0)
    return x


def inputs(module: nn.Module, x: Tensor) -> Tensor:
    """Return the inputs of `module` for `x`, as (G, I, N), so that outputs are ``weight @ inputs``.

    Parameters
    ----------
    module : a convolution (1-D, 2-D; any stride, dilation, groups, padding, padding mode) or linear
    x : an input of the module: (B, C, L), (B, C, H, W), or (..., I) for a linear layer

    Raises
    ------
    TypeError : for another kind of module
    """
    if isinstance(module, nn.Linear):
        return x.reshape(-1, module.in_features).T.unsqueeze(0)
    if not isinstance(module, nn.Conv1d | nn.Conv2d):
        supported = [kind.__name__ for kind in QUANTIZABLE]
        raise TypeError(f"no geometry for {type(module).__name__}; known: {supported}")
    x, window = padded(module, x)
    # (B, G * I, positions)
    columns = F.unfold(x, window.kernel, dilation=window.dilation, stride=window.stride)
    return columns.unflatten(1, (module.groups, -1)).permute(1, 2, 0, 3).flatten(2)


class Window(NamedTuple):
    """How a convolution's kernel lies on its padded input: pairs of (vertical, horizontal)."""

    kernel: tuple[int, int]
    dilation: tuple[int, int]
    stride: tuple[int, int]
    blank: tuple[int, int]  # rows of zeros that padding has put (above, below)


def padded(module: nn.Conv1d | nn.Conv2d, x: Tensor) -> tuple[Tensor, Window]:
    """Return the padded input of a convolution, (B, C, H, W), and how its kernel lies on that.

    A 1-D convolution is treated as a 2-D one of width 1.
    """
    # "same" and integer padding both end up in this list, in F.pad's order, for every mode.
    padding = module._reversed_padding_repeated_twice
    if _pads_same(module):
        padding = _same_padding(module, x)
    mode: str = module.padding_mode
    if mode == "zeros":
        mode = "constant"  # the name that F.pad has for it
    x = F.pad(x, padding, mode=mode)
    blank = _pair(padding[-2:]) if mode == "constant" else (0, 0)
    if isinstance(module, nn.Conv1d):
        (kernel,), (dilation,), (stride,) = module.kernel_size, module.dilation, module.stride
        return x.unsqueeze(3), Window((kernel, 1), (dilation, 1), (stride, 1), blank)
    return x, Window(_pair(module.kernel_size), _pair(module.dilation), _pair(module.stride), blank)


def _pads_same(module: nn.Module) -> bool:
    """Return whether `module` is a Conv2dSame, ours or timm's, a convolution in all but padding."""
    kind = type(module)
    if kind is Conv2dSame:
        return True
    # by name, so that timm need not be imported
    return (kind.__module__, kind.__name__) == ("timm.layers.conv2d_same", "Conv2dSame")


def _same_padding(module: nn.Conv1d | nn.Conv2d, x: Tensor) -> list[int]:
    """Return TensorFlow's "SAME" padding for inputs of the size of `x`, in F.pad's order."""
    padding: list[int] = []
    axes = zip(x.shape[2:], module.kernel_size, module.dilation, module.stride, strict=True)
    for size, kernel, dilation, stride in reversed(list(axes)):
        outputs = -(-size // stride)  # rounded up
        covered = (outputs - 1) * stride + (kernel - 1) * dilation + 1
        total = max(covered - size, 0)
        padding += [total // 2, total - total // 2]
    return padding


def _pair(sizes: Sequence[int]) -> tuple[int, int]:
    vertical, horizontal = sizes
    return vertical, horizontal


def positions(module: nn.Module, output: Tensor) -> int:
    """Return N of one call of `module` by its output: images times output pixels."""
    return output.numel() // _weight(module).shape[0]


def channel_axis(module: nn.Module) -> int:
    """Return the axis of channels in inputs and outputs: the last of a linear layer, else 1."""
    return -1 if isinstance(module, nn.Linear) else 1


def channels_second(module: nn.Module, output: Tensor) -> Tensor:
    """Return an output of `module` with its channels on the second axis, see `channel_axis`."""
    return batched(module, output).movedim(channel_axis(module), 1)


def channels(module: nn.Module, output: Tensor) -> int:
    """Return the number of channels in an output of `module`."""
    return channels_second(module, output).shape[1]


def taps(module: nn.Module) -> int:
    """Return the number of taps of a kernel of `module`; 1 for a linear layer."""
    return _weight(module)[0, 0].numel()


def _weight(module: nn.Module) -> Tensor:
    weight = module.weight
    assert isinstance(weight, Tensor)
    return weight


def _kind(module: nn.Module) -> str:
    """Return what users see as the layer's kind: "linear", "3x3", "3x3 depthwise", ..."""
    if isinstance(module, nn.Linear):
        return "linear"
    assert isinstance(module, nn.Conv1d | nn.Conv2d)
    taps = "x".join(str(size) for size in module.kernel_size)
    if module.groups == 1:
        return taps
    if module.groups == module.in_channels:
        return f"{taps} depthwise"
    return f"{taps} grouped"
