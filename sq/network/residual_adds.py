"""Residual additions: find, and change, the additions of two feature maps while a network runs.

The inputs of a module can be hooked, but ``y + shortcut`` belongs to no module. Under `Adds`,
PyTorch hands every call of its functions to us first, so an addition is seen in any notation:
``+``, ``+=``, `torch.add`, `Tensor.add`, `Tensor.add_`. Additions inside PyTorch's own functions
and modules (BatchNorm, ...) are not seen.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from sq.errors import SqError
from sq.types.problem import Grid

IN_PLACE = {Tensor.add_, Tensor.__iadd__}
ADDITIONS = IN_PLACE | {torch.add, Tensor.add, Tensor.__add__, Tensor.__radd__}
SIDES = ("left", "right")


def sides(number: int) -> list[str]:
    """Return the names of both operands of an addition, by its number in the order of execution."""
    return [f"add.{number}.{side}" for side in SIDES]


def is_side(name: str) -> bool:
    """Return whether `name` is that of an operand, not of a module."""
    prefix, _, rest = name.partition(".")
    number, _, side = rest.partition(".")
    return prefix == "add" and number.isdigit() and side in SIDES


class Adds(TorchFunctionMode):
    """While active, replaces both operands of every addition by ``change(name, operand)``.

    An addition counts if both operands are floating-point tensors of one shape with three or more
    axes (images and at least two more) and neither is a parameter: a learned position embedding is
    no feature map.
    """

    def __init__(self, change: Callable[[str, Tensor], Tensor]):
        super().__init__()
        self.change = change
        self.number = 0  # of additions so far

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Call `func`, with other operands if it is an addition that counts."""
        kwargs = dict(kwargs or {})
        operands = _operands(args, kwargs) if func in ADDITIONS else None
        if operands is None:
            return func(*args, **kwargs)
        left_name, right_name = sides(self.number)
        left_operand = self.change(left_name, operands[0])
        right_operand = self.change(right_name, operands[1])
        self.number += 1
        if left_operand is operands[0] and right_operand is operands[1]:
            return func(*args, **kwargs)
        settings = {key: value for key, value in kwargs.items() if key not in ("input", "other")}
        if func in IN_PLACE:
            # The operands may share their memory, so the sum is computed in a new tensor first.
            return operands[0].copy_(torch.add(left_operand, right_operand, **settings))
        return func(left_operand, right_operand, *args[2:], **settings)


def _operands(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Tensor, Tensor] | None:
    """Return the operands of an addition, or None if it does not count."""
    first = args[0] if args else kwargs.get("input")
    second = args[1] if len(args) > 1 else kwargs.get("other")
    if not (isinstance(first, Tensor) and isinstance(second, Tensor)):
        return None
    if first.shape != second.shape or first.ndim < 3:
        return None
    if isinstance(first, nn.Parameter) or isinstance(second, nn.Parameter):
        return None
    if not (first.is_floating_point() and second.is_floating_point()):
        return None
    return first, second


class QuantizedAdds:
    """A network's forward that rounds the operands of additions to the nearest values of grids.

    It replaces the network's `forward`; see `attach` and `detach`.
    """

    def __init__(
        self, forward: Callable[..., Any], is_instance_forward: bool, grids: dict[str, Grid]
    ):
        self.forward = forward
        # The network had a `forward` in its own attributes, beside that of its class.
        self.is_instance_forward = is_instance_forward
        self.grids = grids

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the network."""
        is_single = bool(args) and isinstance(args[0], Tensor) and len(args[0]) == 1
        if is_single:
            args = (two_images(args[0]), *args[1:])
        with Adds(self._nearest) as adds:
            result = self.forward(*args, **kwargs)
        if is_single:
            result = result[:1]
        self._check_additions(adds.number)
        return result

    def _check_additions(self, count: int) -> None:
        """Raise an `SqError` if a pass of `count` additions lacks one that has a grid."""
        names: set[str] = set()
        for number in range(count):
            names.update(sides(number))
        for name in self.grids:
            if name not in names:
                raise SqError(
                    f"this pass made {count} additions, without {name}: they cannot be told apart"
                )

    def _nearest(self, name: str, x: Tensor) -> Tensor:
        grid = self.grids.get(name)
        if grid is None:
            return x
        grid = to_device(grid, x.device)
        self.grids[name] = grid  # the next pass finds it on this device
        return grid.nearest(x)


def two_images(x: Tensor) -> Tensor:
    """Return images `x` (B, ...), but a single one twice.

    For a single image a learned embedding (1, ...) has the shape of a feature map. Its addition
    would count, and the numbers of the others would differ from those in a batch.
    """
    if len(x) == 1:
        return torch.cat([x, x])
    return x


def to_device(grid: Grid, device: torch.device) -> Grid:
    """Return `grid` with its tensors on `device`."""
    if grid.scale.device == device:
        return grid
    return grid.map(lambda tensor: tensor.to(device))


def attach(net: nn.Module, grids: dict[str, Grid]) -> None:
    """Make `net` round the operands of additions that `grids` names, in every pass."""
    net.forward = QuantizedAdds(net.forward, "forward" in net.__dict__, dict(grids))


def attached(net: nn.Module) -> dict[str, Grid]:
    """Return the grids that `attach` was given, by operand name."""
    forward = net.__dict__.get("forward")
    return dict(forward.grids) if isinstance(forward, QuantizedAdds) else {}


def detach(net: nn.Module) -> None:
    """Undo `attach`, if it was called."""
    forward = net.__dict__.get("forward")
    if isinstance(forward, QuantizedAdds):
        del net.forward
        if forward.is_instance_forward:
            net.forward = forward.forward
