"""Quantization of layer inputs: observe them, fit a grid to each, and insert hooks that round.

An activation grid is per tensor: it has one scale for all images, channels and pixels. The input of
a module has the module's name. An operand of a residual addition has a name such as "add.0.left"
(`sq/network/residual_adds.py`).
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

Observer = Callable[[str, Tensor], None]  # observer(name, values)


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
    """Observe the inputs of modules, and operands of additions if `observe` does, to fit grids.

    Parameters
    ----------
    net : runs once or twice over `x`; it is not changed
    names : modules of `net`
    x : calibration images (B, ...)
    bits_of : bits of some inputs, in place of `bits`; 0 keeps an input in full precision
    bits : of all other grids, 1 to 16
    observe : ``observe(net, names, x) -> histograms`` by name
    fit : ``fit(histogram, bits) -> grid``

    Raises
    ------
    SqError : see `observe` and `fit`; `bits_of` has a name that was not observed
    """
    exceptions = dict(bits_of or {})
    quantized = [name for name in names if exceptions.get(name, bits)]
    histograms = observe(net, quantized, x)
    for name, width in exceptions.items():
        if width and name not in histograms:
            raise SqError(
                f"bits are set for the input of {name}, which is not observed; observed: "
                f"{', '.join(histograms)}"
            )
    bits_by_name = {}
    for name in histograms:
        width = exceptions.get(name, bits)
        if width:
            bits_by_name[name] = width
    fit_once = functools.cache(lambda name, width: fit(histograms[name], width))
    return Inputs(bits_by_name, fit_once)


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
    """Run images through `net` twice and return a histogram of each module's input, by name.

    The first pass finds the lowest and highest value, the second counts the values in bins. The
    calls of a module that is called several times are pooled. On a CPU this takes about 1.6 times
    as long as two plain passes.

    Parameters
    ----------
    x : images (B, ...)
    images : number of images used, the first ones; all, if there are fewer
    batch_size : images in one pass, None for what suits their size; changes speed and memory, not
        results (beyond rounding)
    bins : of each histogram
    adds : observe both operands of residual additions as well

    Raises
    ------
    SqError : an input holds NaN or infinity, or a module is never called; or with `adds`, batches
        of different size make different additions
    """

    def run_twice(size: int) -> dict[str, Histogram]:
        histograms = Histograms(bins)
        batches = batching.split(x[:images], size)
        _run(net, names, batches, adds, histograms.widen)
        histograms.close()
        for name in names:
            if name not in histograms.ranges:
                raise SqError(
                    f"layer {name} was never called on the {min(images, len(x))} calibration "
                    "images that activation.observe.images takes: raise it"
                )
        _run(net, names, batches, adds, histograms.count)
        return histograms.finish()

    size = batching.images_per_pass(x.shape[1:], batch_size)
    return out_of_memory.fitting("activation", run_twice, size)


def _run(
    net: nn.Module, names: list[str], batches: tuple[Tensor, ...], adds: bool, observer: Observer
) -> None:
    """Call `observer` with all inputs of modules, and with operands of additions if `adds`."""
    modules = {name: net.get_submodule(name) for name in names}
    addition_counts = set()
    with torch.no_grad():
        for batch in batches:
            # Additions of a single image are observed in a second pass, in which it is there twice:
            # see `sq.network.residual_adds.two_images`.
            alone = adds and len(batch) == 1
            observing = Adds(partial(_pass_on, observer)) if adds and not alone else nullcontext()
            observe_input = partial(_observe_input, observer)
            with hooks.feeding(modules, observe_input), observing as mode:
                forward(net, batch)
            if alone:
                with Adds(partial(_pass_on, partial(_observe_first_half, observer))) as mode:
                    forward(net, additions.two_images(batch))
            addition_counts.add(mode.number if mode else 0)
    if len(addition_counts) > 1:
        raise SqError(
            f"batches make {' or '.join(map(str, sorted(addition_counts)))} additions; "
            "use a batch_size that divides the number of images"
        )


def _observe_input(observer: Observer, name: str, module: nn.Module, x: Tensor) -> None:
    if x.numel():  # a router may call an expert without inputs
        observer(name, x)


def _observe_first_half(observer: Observer, name: str, x: Tensor) -> None:
    observer(name, x[: max(1, len(x) // 2)])


def _pass_on(observer: Observer, name: str, x: Tensor) -> Tensor:
    observer(name, x)
    return x


class _RoundInput:
    """A forward pre-hook that rounds the input of a module to its grid."""

    def __init__(self, grid: Grid):
        self.grid = grid
        self.handle: RemovableHandle | None = None

    def __call__(
        self, module: nn.Module, args: tuple[Any, ...], named: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if args:
            return (self._round(args[0]), *args[1:]), named
        return args, named | {"input": self._round(named["input"])}

    def _round(self, x: Tensor) -> Tensor:
        self.grid = additions.to_device(self.grid, x.device)
        return self.grid.nearest(x)


def attach(net: nn.Module, grids: Mapping[str, Grid]) -> None:
    """Round the inputs of modules of `net`, and operands of additions, to `grids` by name.

    The tensors themselves are not changed. A deep copy of `net` rounds too. Grids attached before
    are removed.
    """
    detach(net)
    operand_grids = {}
    for name, grid in grids.items():
        if additions.is_side(name):
            operand_grids[name] = grid
        else:
            hook = _RoundInput(grid)
            hook.handle = net.get_submodule(name).register_forward_pre_hook(hook, with_kwargs=True)
    if operand_grids:
        additions.attach(net, operand_grids)


def attached(net: nn.Module) -> dict[str, Grid]:
    """Return the attached grids of layer inputs, by layer name, without those of additions."""
    grids = {}
    for name, module in net.named_modules():
        for hook in module._forward_pre_hooks.values():
            if isinstance(hook, _RoundInput):
                grids[name] = hook.grid
    return grids


def detach(net: nn.Module) -> None:
    """Remove the hooks of `attach` from `net`, which may be a copy of the attached network."""
    for module in net.modules():
        for hook in list(module._forward_pre_hooks.values()):
            if isinstance(hook, _RoundInput) and hook.handle is not None:
                hook.handle.remove()
    additions.detach(net)
