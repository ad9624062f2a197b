"""Folding: put each BatchNorm into the convolution or linear layer that feeds it, as it is done for inference.

What feeds what is found by running the network, not by tracing it: a BatchNorm is folded if the
tensor it is given is the very one that a layer returned. Tracers miss BatchNorms that are not plain
`torch.nn` modules, and say nothing; here the result lists every BatchNorm of the network, folded or
left with the reason.
"""

from __future__ import annotations

import weakref
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from sq.errors import SqError
from sq.network import batchnorm, checks, hooks
from sq.network.forward import forward
from sq.runtime import batching

Foldable = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
# relative squared error of the outputs: far above rounding, far below a BatchNorm that is wrong
TOLERANCE = 1e-6


class Pair(NamedTuple):
    """The names of a layer and of the BatchNorm that is folded into it."""

    layer: str
    norm: str


@dataclass(frozen=True)
class Folded:
    """The names of the BatchNorms that are in a layer's weight now, and of those that are not: ``name (reason)``."""

    folded: list[str]
    left: list[str]
    pairs: tuple[Pair, ...] = field(default=(), compare=False)  # that `again` folds

    def record(self) -> dict[str, list[str]]:
        """Return plain data, for a record."""
        return {"folded": self.folded, "left": self.left}


Outputs = list[tuple[Tensor, Tensor]]  # images, and what the network makes of them


def fold(net: nn.Module, x: Tensor, every: Tensor | None = None) -> Folded:
    """Fold BatchNorm layers into the layers that feed them, in place; names and modules of layers stay.

    A layer gets new parameters (a bias too, where it had none). A BatchNorm becomes `nn.Identity`;
    one that also holds `drop` and `act`, as timm's do, becomes a sequence of these two.

    Parameters
    ----------
    net : in eval mode, best on the CPU: convolutions in TF32, as GPUs do them, may round by more
    than is allowed
        here; unchanged if an error is raised
    x : a few images, (B, ...), as the network takes them: to see what feeds what, and to compare
    outputs
    every : all images there are, which are looked at where `x` does not reach all BatchNorms, as in
    routed networks

    Raises
    ------
    SqError : the network is in training mode, or folding changes its outputs, as where the output
    of a layer
        goes to its BatchNorm and to something else

    Source
    ------
    Jacob et al. 2018, Quantization and Training of Neural Networks for Efficient
    Integer-Arithmetic-Only Inference, arXiv 1712.05877, section 3.2, equation 14, with the bias
    that goes with it.
    """
    if any(module.training for module in net.modules()):
        raise SqError(
            f"{type(net).__name__} is in training mode, where BatchNorm cannot be folded: call net.eval()"
        )
    pairs, left, outputs = _observe(net, x, every)
    for part, wanted in outputs:
        checks.check_outputs(net, part, wanted)
    with ExitStack() as undo:
        error = _error(net, outputs, pairs, undo)
        if error <= TOLERANCE:
            undo.pop_all()
            return Folded([pair.norm for pair in pairs], left, tuple(pairs))
    guilty = [f"{p.norm} into {p.layer}" for p in pairs if not _alone(net, outputs, p) <= TOLERANCE]
    case = f"{', '.join(guilty[:3]) or 'all BatchNorms'}{', ...' * (len(guilty) > 3)}"
    raise SqError(
        f"folding {case} changes the outputs (relative squared error {error:.1e}, allowed {TOLERANCE:.0e}): the layer's"
        " output is used elsewhere too, or its weight is computed in its forward; use this network without folding"
    )


def again(net: nn.Module, pairs: Iterable[Pair]) -> None:
    """Fold `pairs`, which `fold` has folded in a network of the same structure, in place; no image is looked at.

    Raises
    ------
    ValueError : a pair is none of a layer and a BatchNorm
    """
    for pair in pairs:
        layer, norm = net.get_submodule(pair.layer), net.get_submodule(pair.norm)
        if (
            not isinstance(layer, Foldable)
            or not isinstance(norm, batchnorm.Kinds)
            or norm.running_mean is None
        ):
            raise ValueError(f"{pair.norm} cannot be folded into {pair.layer}")
        _fold(net, layer, norm, ExitStack())


class _Passes:
    """What passes of a network show of its layers and BatchNorms."""

    def __init__(self, net: nn.Module):
        self.net, self.layers, self.norms = net, _of(net, Foldable), _of(net, batchnorm.Kinds)
        self.reached: set[str] = set()  # BatchNorms that were given an image at all
        self.calls: dict[str, set[int]] = {}  # in each pass that called it
        # BatchNorms that a layer fed, in each pass that called it
        self.feeds: dict[str, set[int]] = {}
        # the layers that fed a BatchNorm, "" for anything else
        self.sources: dict[str, set[str]] = {}

    def watch(self, x: Tensor) -> Tensor:
        """Run the network on images `x` (B, ...) and return its outputs."""
        calls: Counter[str] = Counter()
        feeds: Counter[str] = Counter()
        # By identity. Weak, so that a tensor's id is forgotten with it; a tensor changed in place
        # has another version.
        outputs: dict[int, tuple[Callable[[], Tensor | None], str, int]] = {}

        def returned(name: str, module: nn.Module, y: Tensor) -> None:
            calls[name] += 1
            outputs[id(y)] = weakref.ref(y), name, y._version

        def given(name: str, module: nn.Module, x: Tensor) -> None:
            calls[name] += 1
            if x.numel():  # a router may call an expert that gets nothing
                self.reached.add(name)
            found, layer, version = outputs.get(id(x), (lambda: None, "", 0))
            # Axes as many as the weight's: the channels of both are the same axis then.
            known = (
                found() is x and version == x._version and x.ndim == self.layers[layer].weight.ndim
            )
            self.sources.setdefault(name, set()).add(layer if known else "")
            feeds[layer] += known

        with (
            torch.no_grad(),
            hooks.returning(self.layers, returned),
            hooks.feeding(self.norms, given),
        ):
            y = forward(self.net, x)
        for name, number in calls.items():
            self.calls.setdefault(name, set()).add(number)
            self.feeds.setdefault(name, set()).add(feeds[name])
        return y

    def source(self, norm: str) -> str:
        """Return the one layer that feeds a BatchNorm, "" if there is none."""
        sources = self.sources.get(norm, {""})
        return next(iter(sources)) if len(sources) == 1 else ""

    def unfit_norm(self, name: str) -> str:
        """Return why a BatchNorm cannot be folded, "" if it can."""
        norm, calls = self.norms[name], max(self.calls.get(name, {0}))
        if norm.running_mean is None:
            return "no running statistics"
        if calls != 1:
            return f"called {calls} times"
        if name not in self.reached:
            return "no image reaches it"
        # one function, of every kind of BatchNorm
        plain = type(norm).forward is nn.BatchNorm2d.forward
        return "" if plain or _follows(norm) else "computes more than a BatchNorm"

    def unfit_layer(self, name: str, holders: Counter[int]) -> str:
        """Return why nothing can be folded into a layer that feeds a BatchNorm, "" if it can."""
        layer, calls, feeds = self.layers[name], max(self.calls[name]), self.feeds[name]
        if calls != 1:
            return f"is called {calls} times"
        fed = [norm for norm, sources in self.sources.items() if name in sources]
        if len(fed) != 1:
            return f"feeds {len(fed)} BatchNorms"
        if feeds != {1}:
            return "does not feed it for all images"
        if not {"weight", "bias"} <= layer._parameters.keys():
            return "computes its parameters"
        return "shares its weight" if holders[id(layer.weight)] > 1 else ""


def _observe(
    net: nn.Module, x: Tensor, every: Tensor | None
) -> tuple[list[Pair], list[str], Outputs]:
    """Run `net`; return which BatchNorm can be folded into which layer, the others, and the outputs to compare.

    Those are of images that reach all BatchNorms which any image reaches.
    """
    passes = _Passes(net)
    outputs = [(x, passes.watch(x))]
    if every is not None and len(passes.reached) < len(passes.norms):
        for part in batching.split(every, None):
            before = len(passes.reached)
            y = passes.watch(part)
            if len(passes.reached) > before:
                outputs.append((part, y))
    holders = Counter(
        id(p) for module in net.modules() for p in module._parameters.values() if p is not None
    )
    pairs, left = [], []
    for name in passes.norms:
        layer = passes.source(name)
        if reason := passes.unfit_norm(name):
            left.append(f"{name} ({reason})")
        elif not layer:
            left.append(f"{name} (not fed by one layer)")
        elif reason := passes.unfit_layer(layer, holders):
            left.append(f"{name} ({layer} {reason})")
        else:
            pairs.append(Pair(layer, name))
    return pairs, left, outputs


def _of(net: nn.Module, kinds: tuple[type[nn.Module], ...]) -> dict[str, nn.Module]:
    return {name: module for name, module in net.named_modules() if isinstance(module, kinds)}


def _follows(norm: nn.Module) -> OrderedDict[str, nn.Module]:
    """Return what a BatchNorm applies to what it has normalised: `drop` and `act` if it is timm's, else nothing."""
    children = OrderedDict(norm.named_children())
    return children if list(children) == ["drop", "act"] else OrderedDict()


def _error(net: nn.Module, outputs: Outputs, pairs: list[Pair], undo: ExitStack) -> float:
    """Fold `pairs`, leave with `undo` how to take that back, and return the relative squared error of the outputs."""
    for pair in pairs:
        _fold(net, net.get_submodule(pair.layer), net.get_submodule(pair.norm), undo)
    errors = []
    for x, wanted in outputs:
        with torch.no_grad():
            difference = (forward(net, x).double() - wanted.double()).square().sum()
        errors.append(
            float(
                difference
                / wanted.double().square().sum().clamp_min(torch.finfo(torch.float64).tiny)
            )
        )
    return max(errors)


def _alone(net: nn.Module, outputs: Outputs, pair: Pair) -> float:
    """Return the error that folding one pair alone would leave, and take it back."""
    with ExitStack() as undo:
        return _error(net, outputs, [pair], undo)


def _fold(net: nn.Module, layer: nn.Module, norm: nn.Module, undo: ExitStack) -> None:
    weight, bias = layer._parameters["weight"], layer._parameters["bias"]
    assert weight is not None
    mean, variance = batchnorm.running(norm)
    # A linear layer's weight is that of a convolution without taps, so one formula serves both.
    gain, shift, eps = norm._parameters["weight"], norm._parameters["bias"], float(norm.eps)  # type: ignore[arg-type]
    undo.callback(layer._parameters.update, weight=weight, bias=bias)
    layer.weight, layer.bias = fuse_conv_bn_weights(weight, bias, mean, variance, eps, gain, shift)
    rest = nn.Sequential(follows) if (follows := _follows(norm)) else nn.Identity()
    for parent in net.modules():
        for key, child in parent._modules.items():
            if child is norm:  # under every name it has
                undo.callback(parent._modules.update, {key: norm})
                parent._modules[key] = rest.eval()
