"""Residual additions: where a network's forward adds two feature maps, found and changed while it runs.

A module's inputs can be hooked; ``y + shortcut`` belongs to no module. Under `Adds`, PyTorch hands
every call of its functions to us first, so that an addition is seen however it is written: ``+``,
``+=``, `torch.add`, `Tensor.add`, `Tensor.add_`. Additions inside PyTorch's own functions and
modules (BatchNorm, ...) are not seen.
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
    """Return whether `name` is of an operand, not of a module."""
    first, _, rest = name.partition(".")
    number, _, side = rest.partition(".")
    return first == "add" and number.isdigit() and side in SIDES


class Adds(TorchFunctionMode):
    """While active, gives both operands of every addition to ``change(name, operand)`` and adds what that returns.

    An addition counts if both operands are floating-point tensors of one shape with three or more
    axes (images and at least two more) and neither is a parameter: a learnt position embedding is
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
        named = dict(kwargs or {})
        if func not in ADDITIONS or (pair := _operands(args, named)) is None:
            return func(*args, **named)
        left, right = (
            self.change(name, x) for name, x in zip(sides(self.number), pair, strict=True)
        )
        self.number += 1
        if left is pair[0] and right is pair[1]:
            return func(*args, **named)
        rest = {key: value for key, value in named.items() if key not in ("input", "other")}
        if func in IN_PLACE:  # by way of a new tensor, because the operands may share their memory
            return pair[0].copy_(torch.add(left, right, **rest))
        return func(left, right, *args[2:], **rest)


def _operands(args: tuple[Any, ...], named: Mapping[str, Any]) -> tuple[Tensor, Tensor] | None:
    """Return what is added, or None if that does not count."""
    left = args[0] if args else named.get("input")
    right = args[1] if len(args) > 1 else named.get("other")
    if (
        not (isinstance(left, Tensor) and isinstance(right, Tensor))
        or left.shape != right.shape
        or left.ndim < 3
    ):
        return None
    learnt = isinstance(left, nn.Parameter) or isinstance(right, nn.Parameter)
    return (
        (left, right)
        if left.is_floating_point() and right.is_floating_point() and not learnt
        else None
    )


class Quantized:
    """A network's forward in which operands of additions are replaced by the nearest values of their grids.

    It stands in the place of the network's `forward`; `attach` and `detach` put it there and take
    it away.
    """

    def __init__(self, forward: Callable[..., Any], replaces: bool, grids: dict[str, Grid]):
        self.forward = forward
        self.replaces = replaces  # the network had a forward of its own, not its class's
        self.grids = grids

    def __call__(self, *args: Any, **named: Any) -> Any:
        """Run the network."""
        single = bool(args) and isinstance(args[0], Tensor) and len(args[0]) == 1
        with Adds(self._nearest) as adds:
            result = self.forward(*([in_company(args[0]), *args[1:]] if single else args), **named)
        result = result[:1] if single else result
        known = {name for number in range(adds.number) for name in sides(number)}
        if missing := [name for name in self.grids if name not in known]:
            raise SqError(
                f"this pass made {adds.number} additions, without {missing[0]}: they cannot be told apart"
            )
        return result

    def _nearest(self, name: str, x: Tensor) -> Tensor:
        if (grid := self.grids.get(name)) is None:
            return x
        self.grids[name] = grid = on(grid, x.device)
        return grid.nearest(x)


def in_company(x: Tensor) -> Tensor:
    """Return images `x` (B, ...), a single one of them twice.

    To a single image a learnt embedding (1, ...) has the shape of a feature map: its addition would
    count, and all others have other numbers than in a batch.
    """
    return torch.cat([x, x]) if len(x) == 1 else x


def on(grid: Grid, device: torch.device) -> Grid:
    """Return `grid` with its tensors on `device`."""
    return grid if grid.scale.device == device else grid.map(lambda t: t.to(device))


def attach(net: nn.Module, grids: dict[str, Grid]) -> None:
    """Make every pass of `net` add the nearest grid values, for the operands that `grids` names."""
    net.forward = Quantized(net.forward, "forward" in net.__dict__, dict(grids))


def attached(net: nn.Module) -> dict[str, Grid]:
    """Return the grids of operands of additions by name, as `attach` left them."""
    forward = net.__dict__.get("forward")
    return dict(forward.grids) if isinstance(forward, Quantized) else {}


def detach(net: nn.Module) -> None:
    """Undo `attach`, if it was."""
    if isinstance(forward := net.__dict__.get("forward"), Quantized):
        del net.forward
        if forward.replaces:
            net.forward = forward.forward
