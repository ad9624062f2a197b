"""Fold each BatchNorm into the convolution or linear layer before it, as inference engines do.

A pass through the network shows which layer's output goes to which BatchNorm: one is folded if its
input is the very tensor that a layer returned. Tracers miss BatchNorms that are not plain
`torch.nn` modules, without a message. Here the result lists every BatchNorm of the network: folded,
or not folded with the reason.
"""

from __future__ import annotations

import weakref
from collections import Counter, OrderedDict
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from sq.errors import SqError
from sq.network import batchnorm_statistics, checks, hooks
from sq.network.forward import forward
from sq.network.weight_swap import count_parameter_users
from sq.runtime import batching

FOLDABLE = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
# Relative squared error of the outputs that is allowed: far above rounding, far below the effect of
# a wrong BatchNorm.
TOLERANCE = 1e-6
SHOWN_NAMES = 3  # in a message


class Pair(NamedTuple):
    """The names of a layer and of the BatchNorm that is folded into it."""

    layer: str
    norm: str


@dataclass(frozen=True)
class Folded:
    """Names of the BatchNorms that were folded, and of the others, as ``name (reason)``."""

    folded: list[str]
    not_folded: list[str]
    pairs: tuple[Pair, ...] = field(default=(), compare=False)  # for `fold_pairs`

    def record(self) -> dict[str, list[str]]:
        """Return plain data, for a record."""
        return {"folded": self.folded, "left": self.not_folded}


Outputs = list[tuple[Tensor, Tensor]]  # images and the network's outputs for them


def fold(net: nn.Module, x: Tensor, all_images: Tensor | None = None) -> Folded:
    """Fold BatchNorm layers into the layers before them, in place.

    The layers keep their names and modules. A layer gets new parameters (a bias too, if it had
    none). A BatchNorm becomes `nn.Identity`; one that also holds `drop` and `act`, as timm's do,
    becomes a sequence of these two.

    Parameters
    ----------
    net : in eval mode, best on the CPU: convolutions in TF32, as on GPUs, may round by more than
        the tolerance. Unchanged if an error is raised
    x : a few images (B, ...) as the network takes them; they show which layer precedes which
        BatchNorm, and outputs are compared on them
    all_images : used if `x` does not reach all BatchNorms, as in networks that route images

    Raises
    ------
    SqError : the network is in training mode, or folding changes its outputs (as where a layer's
        output goes to its BatchNorm and to something else)

    Source
    ------
    Jacob et al. 2018, Quantization and Training of Neural Networks for Efficient
    Integer-Arithmetic-Only Inference, arXiv 1712.05877, section 3.2, equation 14, with the bias
    that goes with it.
    """
    if any(module.training for module in net.modules()):
        raise SqError(
            f"{type(net).__name__} is in training mode, where BatchNorm cannot be folded: "
            "call net.eval()"
        )
    pairs, not_folded, outputs = _find_pairs(net, x, all_images)
    for images, reference in outputs:
        checks.check_outputs(net, images, reference)
    with ExitStack() as undo:
        error = _fold_and_compare(net, outputs, pairs, undo)
        if error <= TOLERANCE:
            undo.pop_all()
            return Folded([pair.norm for pair in pairs], not_folded, tuple(pairs))
    # Folding is undone here. Each pair is tried alone, to name those that change the outputs.
    wrong = []
    for pair in pairs:
        error_alone = _error_alone(net, outputs, pair)
        if not error_alone <= TOLERANCE:  # not `>`, which would pass NaN
            wrong.append(f"{pair.norm} into {pair.layer}")
    names = ", ".join(wrong[:SHOWN_NAMES]) or "all BatchNorms"
    more = ", ..." if len(wrong) > SHOWN_NAMES else ""
    raise SqError(
        f"folding {names}{more} changes the outputs (relative squared error {error:.1e}, allowed "
        f"{TOLERANCE:.0e}): the layer's output is used elsewhere too, or its weight is computed in "
        "its forward; use this network without folding"
    )


def fold_pairs(net: nn.Module, pairs: Iterable[Pair]) -> None:
    """Fold `pairs` again that `fold` returned for a network of the same structure, in place.

    No image is needed.

    Raises
    ------
    ValueError : a pair does not name a layer and a BatchNorm with running statistics
    """
    for pair in pairs:
        layer, norm = net.get_submodule(pair.layer), net.get_submodule(pair.norm)
        if (
            not isinstance(layer, FOLDABLE)
            or not isinstance(norm, batchnorm_statistics.BATCHNORMS)
            or norm.running_mean is None
        ):
            raise ValueError(f"{pair.norm} cannot be folded into {pair.layer}")
        _fold_pair(net, layer, norm, ExitStack())


class _LayerOutput(NamedTuple):
    """A tensor that a layer returned. A change of the tensor in place raises its version."""

    tensor: weakref.ref[Tensor]
    layer: str
    version: int


class _Observer:
    """Passes through a network, and how its layers and BatchNorms are connected in them."""

    def __init__(self, net: nn.Module):
        self.net = net
        self.layers = _modules_of(net, FOLDABLE)
        self.norms = _modules_of(net, batchnorm_statistics.BATCHNORMS)
        self.reached: set[str] = set()  # BatchNorms that were called with at least one image
        # Of each module: how often a pass called it, for the passes that did.
        self.calls: dict[str, set[int]] = {}
        # Of each module: how many calls of BatchNorms took its output, for the same passes.
        self.norm_calls: dict[str, set[int]] = {}
        # Of each BatchNorm: the layers whose outputs it took, "" for anything else.
        self.sources: dict[str, set[str]] = {}

    def run(self, x: Tensor) -> Tensor:
        """Run the network on images `x` (B, ...) and return its outputs."""
        calls: Counter[str] = Counter()
        norm_calls: Counter[str] = Counter()
        # By identity. The references are weak: an id may be used again once its tensor is gone.
        layer_outputs: dict[int, _LayerOutput] = {}

        def after_layer(name: str, module: nn.Module, y: Tensor) -> None:
            calls[name] += 1
            layer_outputs[id(y)] = _LayerOutput(weakref.ref(y), name, y._version)

        def before_norm(name: str, module: nn.Module, norm_input: Tensor) -> None:
            calls[name] += 1
            if norm_input.numel():  # a router may call an expert without any image
                self.reached.add(name)
            layer = self._layer_behind(norm_input, layer_outputs.get(id(norm_input)))
            self.sources.setdefault(name, set()).add(layer)
            if layer:
                norm_calls[layer] += 1

        with (
            torch.no_grad(),
            hooks.returning(self.layers, after_layer),
            hooks.feeding(self.norms, before_norm),
        ):
            outputs = forward(self.net, x)
        for name, count in calls.items():
            self.calls.setdefault(name, set()).add(count)
            self.norm_calls.setdefault(name, set()).add(norm_calls[name])
        return outputs

    def _layer_behind(self, x: Tensor, output: _LayerOutput | None) -> str:
        """Return the layer that returned `x`, "" if `x` is not its unchanged output."""
        if output is None or output.tensor() is not x or output.version != x._version:
            return ""
        # With as many axes as the weight has, channels are on the second axis for layer and
        # BatchNorm.
        if x.ndim != self.layers[output.layer].weight.ndim:
            return ""
        return output.layer

    def source(self, norm: str) -> str:
        """Return the one layer whose output a BatchNorm takes, "" if there is none."""
        sources = self.sources.get(norm, {""})
        if len(sources) != 1:
            return ""
        return next(iter(sources))

    def norm_objection(self, name: str) -> str:
        """Return why a BatchNorm cannot be folded, "" if it can."""
        norm = self.norms[name]
        calls = max(self.calls.get(name, {0}))
        if norm.running_mean is None:
            return "no running statistics"
        if calls != 1:
            return f"called {calls} times"
        if name not in self.reached:
            return "no image reaches it"
        # All BatchNorm classes of PyTorch share this function.
        plain = type(norm).forward is nn.BatchNorm2d.forward
        if plain or _following_modules(norm):
            return ""
        return "computes more than a BatchNorm"

    def layer_objection(self, name: str, users: Counter[int]) -> str:
        """Return why no BatchNorm can be folded into a layer, with its name; "" if one can.

        Parameters
        ----------
        users : how many modules have a parameter, by its id
        """
        layer = self.layers[name]
        calls = max(self.calls[name])
        if calls != 1:
            return f"{name} is called {calls} times"
        norms = sum(name in sources for sources in self.sources.values())
        if norms != 1:
            return f"{name} feeds {norms} BatchNorms"
        if self.norm_calls[name] != {1}:
            return f"{name} does not feed it for all images"
        if not {"weight", "bias"} <= layer._parameters.keys():
            return f"{name} computes its parameters"
        if users[id(layer.weight)] > 1:
            return f"{name} shares its weight"
        return ""


def _find_pairs(
    net: nn.Module, x: Tensor, all_images: Tensor | None
) -> tuple[list[Pair], list[str], Outputs]:
    """Return the pairs that can be folded, the other BatchNorms, and the outputs to compare.

    The outputs are those of `x`, and of the batches that first reach another BatchNorm.
    """
    observer = _Observer(net)
    outputs = [(x, observer.run(x))]
    if all_images is not None and len(observer.reached) < len(observer.norms):
        for batch in batching.split(all_images, None):
            reached_before = len(observer.reached)
            batch_outputs = observer.run(batch)
            if len(observer.reached) > reached_before:
                outputs.append((batch, batch_outputs))
    users = count_parameter_users(net.modules())
    pairs: list[Pair] = []
    not_folded: list[str] = []
    for name in observer.norms:
        layer = observer.source(name)
        reason = observer.norm_objection(name)
        if not reason and not layer:
            reason = "not fed by one layer"
        if not reason:
            reason = observer.layer_objection(layer, users)
        if reason:
            not_folded.append(f"{name} ({reason})")
        else:
            pairs.append(Pair(layer, name))
    return pairs, not_folded, outputs


def _modules_of(net: nn.Module, kinds: tuple[type[nn.Module], ...]) -> dict[str, nn.Module]:
    return {name: module for name, module in net.named_modules() if isinstance(module, kinds)}


def _following_modules(norm: nn.Module) -> OrderedDict[str, nn.Module]:
    """Return the `drop` and `act` that a BatchNorm of timm applies last; of others, nothing."""
    children = OrderedDict(norm.named_children())
    if list(children) != ["drop", "act"]:
        return OrderedDict()
    return children


def _fold_and_compare(
    net: nn.Module, outputs: Outputs, pairs: list[Pair], undo: ExitStack
) -> float:
    """Fold `pairs` and return the relative squared error of the outputs; `undo` takes it back."""
    for pair in pairs:
        _fold_pair(net, net.get_submodule(pair.layer), net.get_submodule(pair.norm), undo)
    errors = []
    for images, reference in outputs:
        with torch.no_grad():
            error = (forward(net, images).double() - reference.double()).square().sum()
        norm = reference.double().square().sum()
        # no division by 0, for outputs that are all 0
        errors.append(float(error / norm.clamp_min(torch.finfo(torch.float64).tiny)))
    return max(errors)


def _error_alone(net: nn.Module, outputs: Outputs, pair: Pair) -> float:
    """Return the error after folding one pair alone; the network is unchanged afterwards."""
    with ExitStack() as undo:
        return _fold_and_compare(net, outputs, [pair], undo)


def _fold_pair(net: nn.Module, layer: nn.Module, norm: nn.Module, undo: ExitStack) -> None:
    """Fold `norm` into `layer`, and push what takes that back on `undo`."""
    weight, bias = layer._parameters["weight"], layer._parameters["bias"]
    assert weight is not None
    mean, variance = batchnorm_statistics.running(norm)
    gain, shift = norm._parameters["weight"], norm._parameters["bias"]
    eps = float(norm.eps)  # type: ignore[arg-type]
    undo.callback(layer._parameters.update, weight=weight, bias=bias)
    # A linear layer's weight is that of a convolution without taps, so one formula serves both.
    layer.weight, layer.bias = fuse_conv_bn_weights(weight, bias, mean, variance, eps, gain, shift)
    following = _following_modules(norm)
    replacement = nn.Sequential(following) if following else nn.Identity()
    for parent in net.modules():
        for key, child in parent._modules.items():
            if child is norm:  # a module may have several names
                undo.callback(parent._modules.update, {key: norm})
                parent._modules[key] = replacement.eval()
