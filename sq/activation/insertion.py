"""Quantization of what layers are fed: observe their inputs, fit a grid to each, and make layers see grid values.

A grid of activations is per tensor: one scale for all images, channels and pixels. Inputs of
modules go by the module's name, operands of residual additions by theirs
(`sq/network/residual_adds.py`): "add.0.left", "add.0.right", ...
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from sq.activation.histogram import Histogram, Histograms
from sq.config.constraints import Bins, Count
from sq.errors import SqError
from sq.network import hooks
from sq.network import residual_adds as additions
from sq.network.forward import forward
from sq.network.residual_adds import Adds
from sq.runtime import batching, out_of_memory
from sq.types.problem import Grid, Inputs

See = Callable[[str, Tensor], None]


def quantize(  # noqa: PLR0913 (three are knobs, each a part of the YAML)
    net: nn.Module,
    names: list[str],
    x: Tensor,
    bits_of: Mapping[str, int] | None = None,
    *,
    bits: Count,
    observe: Callable[[nn.Module, list[str], Tensor], dict[str, Histogram]],
    fit: Callable[[Histogram, int], Grid],
) -> Inputs:
    """Look at the input of each module named, and at residual additions if `observe` sees them, to fit grids to.

    Parameters
    ----------
    net : runs once or twice over `x`; is left as it was
    names : modules of `net`
    x : calibration images (B, ...)
    bits_of : bits of some names, in place of `bits`; 0 keeps that input in full precision, without
    a grid
    bits : of all other grids, 1 to 16
    observe : ``observe(net, names, x) -> histograms`` by name
    fit : ``fit(histogram, bits) -> grid``

    Raises
    ------
    SqError : see `observe` and `fit`; `bits_of` has a name that was not observed
    """
    own = dict(bits_of or {})
    histograms = observe(net, [name for name in names if own.get(name, bits)], x)
    if unknown := [name for name in own if own[name] and name not in histograms]:
        raise SqError(
            f"bits for the input of {unknown[0]}, which is not observed; observed: {', '.join(histograms)}"
        )
    fitted = functools.cache(lambda name, width: fit(histograms[name], width))
    return Inputs({name: width for name in histograms if (width := own.get(name, bits))}, fitted)


def observe(  # noqa: PLR0913 (four are knobs, each a line of YAML)
    net: nn.Module,
    names: list[str],
    x: Tensor,
    *,
    images: Count,
    batch_size: Count | None,
    bins: Bins,
    adds: bool,
) -> dict[str, Histogram]:
    """Run images through `net` twice and return a histogram of the inputs of each module named.

    The first pass finds the lowest and highest value, the second counts every value between. A
    module that is called several times in one pass pools its calls. On a CPU this takes about 1.6
    times as long as two plain passes.

    Parameters
    ----------
    x : images (B, ...)
    images : of which the first so many are used; all, if there are fewer
    batch_size : images in one pass, None for what suits their size; changes speed and memory, not
    results (beyond
        rounding)
    bins : of each histogram
    adds : observe both operands of residual additions as well

    Raises
    ------
    SqError : an input holds NaN or infinity, or a module is never called: it is named; `adds`, and
    batches of
        different size make different additions
    """

    def twice(size: int) -> dict[str, Histogram]:
        found = Histograms(bins)
        batches = batching.split(x[:images], size)
        _run(net, names, batches, adds, found.widen)
        found.close()
        if missing := [name for name in names if name not in found.known]:
            raise SqError(
                f"layer {missing[0]} was never called on the {min(images, len(x))} calibration images that "
                "activation.observe.images takes: raise it"
            )
        _run(net, names, batches, adds, found.count)
        return found.finish()

    return out_of_memory.fitting(
        "activation", twice, batching.images_per_pass(x.shape[1:], batch_size)
    )


def _run(
    net: nn.Module, names: list[str], batches: tuple[Tensor, ...], adds: bool, see: See
) -> None:
    made = set()
    fed = {name: net.get_submodule(name) for name in names}
    with torch.no_grad():
        for batch in batches:
            twice = adds and len(batch) == 1  # see `sq.network.residual_adds.two_images`
            observing = Adds(partial(_pass_on, see)) if adds and not twice else nullcontext()
            with hooks.feeding(fed, lambda name, _, x: _look(see, name, x)), observing as mode:
                forward(net, batch)
            if twice:
                with Adds(partial(_pass_on, partial(_half, see))) as mode:
                    forward(net, additions.two_images(batch))
            made.add(mode.number if mode else 0)
    if len(made) > 1:
        raise SqError(
            f"batches make {' or '.join(map(str, sorted(made)))} additions; use a batch_size that divides"
        )


def _look(see: See, name: str, x: Tensor) -> None:
    if x.numel():  # a router may call an expert that gets nothing
        see(name, x)


def _half(see: See, name: str, x: Tensor) -> None:
    see(name, x[: max(1, len(x) // 2)])


def _pass_on(see: See, name: str, x: Tensor) -> Tensor:
    see(name, x)
    return x


class _Nearest:
    """A hook by which a module sees the grid values nearest to its input."""

    def __init__(self, grid: Grid):
        self.grid = grid
        self.handle: RemovableHandle | None = None

    def __call__(
        self, module: nn.Module, args: tuple[Any, ...], named: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if args:
            return (self._nearest(args[0]), *args[1:]), named
        return args, named | {"input": self._nearest(named["input"])}

    def _nearest(self, x: Tensor) -> Tensor:
        self.grid = additions.to_device(self.grid, x.device)
        return self.grid.nearest(x)


def attach(net: nn.Module, grids: Mapping[str, Grid]) -> None:
    """Make each module of `net` that `grids` names, and each operand of an addition, see the nearest grid values.

    The tensors themselves are not changed. A deep copy of `net` sees grid values too. What was
    attached before is removed.
    """
    detach(net)
    for name, grid in grids.items():
        if not additions.is_side(name):
            hook = _Nearest(grid)
            hook.handle = net.get_submodule(name).register_forward_pre_hook(hook, with_kwargs=True)
    if sums := {name: grid for name, grid in grids.items() if additions.is_side(name)}:
        additions.attach(net, sums)


def attached(net: nn.Module) -> dict[str, Grid]:
    """Return the grids of what layers are fed, by layer name, as `attach` left them; those of additions are apart."""
    return {
        name: hook.grid
        for name, module in net.named_modules()
        for hook in module._forward_pre_hooks.values()
        if isinstance(hook, _Nearest)
    }


def detach(net: nn.Module) -> None:
    """Remove what `attach` did, from `net` or from what it was copied from."""
    for module in net.modules():
        for hook in list(module._forward_pre_hooks.values()):
            if isinstance(hook, _Nearest) and hook.handle is not None:
                hook.handle.remove()
    additions.detach(net)
