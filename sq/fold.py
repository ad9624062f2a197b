"""Folding: put each BatchNorm into the convolution or linear layer that feeds it, as it is done for inference.

What feeds what is found by running the network, not by tracing it: a BatchNorm is folded if the tensor it is
given is the very one that a layer returned. Tracers miss BatchNorms that are not plain `torch.nn` modules, and
say nothing; here the result lists every BatchNorm of the network, folded or left with the reason.
"""

from __future__ import annotations

import weakref
from collections import Counter, OrderedDict
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from sq import batchnorm, hooks
from sq.errors import SqError
from sq.network import checks
from sq.network.forward import forward

Foldable = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
TOLERANCE = 1e-6  # relative squared error of the outputs: far above rounding, far below a BatchNorm that is wrong


@dataclass(frozen=True)
class Folded:
    """The names of the BatchNorms that are in a layer's weight now, and of those that are not: ``name (reason)``."""

    folded: list[str]
    left: list[str]


@dataclass(frozen=True)
class _Pair:
    layer: str
    norm: str


def fold(net: nn.Module, x: Tensor) -> Folded:
    """Fold BatchNorm layers into the layers that feed them, in place; names and modules of layers stay.

    A layer gets new parameters (a bias too, where it had none). A BatchNorm becomes `nn.Identity`; one that also
    holds `drop` and `act`, as timm's do, becomes a sequence of these two.

    Parameters
    ----------
    net : in eval mode, best on the CPU: convolutions in TF32, as GPUs do them, may round by more than is allowed
        here; unchanged if an error is raised
    x : a few images, (B, ...), as the network takes them: to see what feeds what, and to compare outputs

    Raises
    ------
    SqError : the network is in training mode, or folding changes its outputs, as where the output of a layer
        goes to its BatchNorm and to something else

    Source
    ------
    Jacob et al. 2018, Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only
    Inference, arXiv 1712.05877, section 3.2, equation 14, with the bias that goes with it.
    """
    if any(module.training for module in net.modules()):
        raise SqError(f"{type(net).__name__} is in training mode, where BatchNorm cannot be folded: call net.eval()")
    pairs, left, wanted = _observe(net, x)
    checks.check_outputs(net, x, wanted)
    with ExitStack() as undo:
        error = _error(net, x, wanted, pairs, undo)
        if error <= TOLERANCE:
            undo.pop_all()
            return Folded([pair.norm for pair in pairs], left)
    guilty = [f"{p.norm} into {p.layer}" for p in pairs if not _alone(net, x, wanted, p) <= TOLERANCE]
    case = f"{', '.join(guilty[:3]) or 'all BatchNorms'}{', ...' * (len(guilty) > 3)}"
    raise SqError(
        f"folding {case} changes the outputs (relative squared error {error:.1e}, allowed {TOLERANCE:.0e}): the layer's"
        " output is used elsewhere too, or its weight is computed in its forward; use this network without folding"
    )


def _observe(net: nn.Module, x: Tensor) -> tuple[list[_Pair], list[str], Tensor]:
    """Run `net` once; return which BatchNorm can be folded into which layer, the others, and the outputs."""
    layers, norms = _of(net, Foldable), _of(net, batchnorm.Kinds)
    calls: Counter[str] = Counter()
    fed: Counter[str] = Counter()  # BatchNorms that a layer feeds
    source: dict[str, str] = {}  # layer by BatchNorm
    # By identity. Weak, so that a tensor's id is forgotten with it; a tensor changed in place has another version.
    outputs: dict[int, tuple[Callable[[], Tensor | None], str, int]] = {}

    def returned(name: str, module: nn.Module, y: Tensor) -> None:
        calls[name] += 1
        outputs[id(y)] = weakref.ref(y), name, y._version

    def given(name: str, module: nn.Module, x: Tensor) -> None:
        calls[name] += 1
        found, layer, version = outputs.get(id(x), (lambda: None, "", 0))
        # Axes as many as the weight's: the channels of both are the same axis then.
        if found() is x and version == x._version and x.ndim == layers[layer].weight.ndim:
            source[name] = layer
            fed[layer] += 1

    with torch.no_grad(), hooks.returning(layers, returned), hooks.feeding(norms, given):
        wanted = forward(net, x)
    own = Counter(id(p) for module in net.modules() for p in module._parameters.values() if p is not None)
    pairs, left = [], []
    for name, norm in norms.items():
        layer = source.get(name, "")
        if reason := _unfit_norm(norm, calls[name]):
            left.append(f"{name} ({reason})")
        elif not layer:
            left.append(f"{name} (not fed by one layer)")
        elif reason := _unfit_layer(layers[layer], calls[layer], fed[layer], own):
            left.append(f"{name} ({layer} {reason})")
        else:
            pairs.append(_Pair(layer, name))
    return pairs, left, wanted


def _of(net: nn.Module, kinds: tuple[type[nn.Module], ...]) -> dict[str, nn.Module]:
    return {name: module for name, module in net.named_modules() if isinstance(module, kinds)}


def _unfit_norm(norm: nn.Module, calls: int) -> str:
    """Return why a BatchNorm cannot be folded, "" if it can."""
    if norm.running_mean is None:
        return "no running statistics"
    if calls != 1:
        return f"called {calls} times"
    plain = type(norm).forward is nn.BatchNorm2d.forward  # one function, of every kind of BatchNorm
    return "" if plain or _follows(norm) else "computes more than a BatchNorm"


def _unfit_layer(layer: nn.Module, calls: int, feeds: int, holders: Counter[int]) -> str:
    """Return why nothing can be folded into a layer that feeds a BatchNorm, "" if it can."""
    if calls != 1:
        return f"is called {calls} times"
    if feeds != 1:
        return f"feeds {feeds} BatchNorms"
    if not {"weight", "bias"} <= layer._parameters.keys():
        return "computes its parameters"
    return "shares its weight" if holders[id(layer.weight)] > 1 else ""


def _follows(norm: nn.Module) -> OrderedDict[str, nn.Module]:
    """Return what a BatchNorm applies to what it has normalised: `drop` and `act` if it is timm's, else nothing."""
    children = OrderedDict(norm.named_children())
    return children if list(children) == ["drop", "act"] else OrderedDict()


def _error(net: nn.Module, x: Tensor, wanted: Tensor, pairs: list[_Pair], undo: ExitStack) -> float:
    """Fold `pairs`, leave with `undo` how to take that back, and return the relative squared error of the outputs."""
    for pair in pairs:
        _fold(net, net.get_submodule(pair.layer), net.get_submodule(pair.norm), undo)
    with torch.no_grad():
        difference = (forward(net, x).double() - wanted.double()).square().sum()
    return float(difference / wanted.double().square().sum().clamp_min(torch.finfo(torch.float64).tiny))


def _alone(net: nn.Module, x: Tensor, wanted: Tensor, pair: _Pair) -> float:
    """Return the error that folding one pair alone would leave, and take it back."""
    with ExitStack() as undo:
        return _error(net, x, wanted, [pair], undo)


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
