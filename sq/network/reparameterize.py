"""Fuse modules that are trained with several branches, by the methods they offer for inference.

RepVGG, MobileOne, FastViT, RepGhost and others train a sum of convolutions that becomes one
convolution afterwards. Quantized branch by branch they differ from the networks that are deployed.
"""

from __future__ import annotations

import inspect
from typing import Any

from torch import Tensor, nn

from sq.core.progress import say
from sq.core.wording import quantity
from sq.errors import SqError, one_line
from sq.network.copies import copied
from sq.network.products import distance, run
from sq.runtime import out_of_memory

# Names of the fusing methods, in timm's order. `fuse` returns a new module, the others change the
# module in place.
METHODS = ("fuse", "reparameterize", "switch_to_deploy")
TOLERANCE = 1e-6  # relative squared error of the outputs, as for folding BatchNorm
SHOWN_NAMES = 3  # in a message


def apply(net: nn.Module, x: Tensor, setting: str) -> nn.Module:
    """Return `net` with every module fused that offers it, and report that; else `net` itself.

    Parameters
    ----------
    net : in eval mode; not changed
    x : one or a few images as the network takes them, to compare outputs
    setting : the setting that turns this off, for messages

    Raises
    ------
    SqError : a module cannot be fused, or fusing changes the outputs
    """
    names = fusible(net)
    if not names:
        return net
    kind = type(net).__name__
    more = ", ..." if len(names) > SHOWN_NAMES else ""
    shown = f"{', '.join(names[:SHOWN_NAMES])}{more}"
    fused = copied(net)
    try:
        _fuse_children(fused, {})
        fused = fused.eval().requires_grad_(False)
        error = distance(run(fused, x), run(net, x))
    except Exception as problem:  # the network's own code may raise anything
        if out_of_memory.is_out(problem):
            raise
        raise SqError(
            f"{kind} offers to fuse {shown}, and fails at it ({one_line(problem)[:160]}): "
            f"set {setting}"
        ) from problem
    if not error <= TOLERANCE:  # not `>`, which would pass NaN
        raise SqError(
            f"fusing {shown} as {kind} offers it changes the outputs (relative squared error "
            f"{error:.1e}, allowed {TOLERANCE:.0e}): set {setting}"
        )
    say(
        f"reparameterized: {quantity(names, 'module')} fused as {kind} offers it ({shown}); "
        f"not with {setting}"
    )
    return fused


def fusible(net: nn.Module) -> list[str]:
    """Return the names of the modules in `net` that can be fused, outermost ones only."""
    names: list[str] = []
    for name, module in net.named_modules():
        nested = any(name.startswith(f"{outer}.") for outer in names)
        if name and not nested and _fusing_method(module) is not None:
            names.append(name)
    return names


def _fusing_method(module: nn.Module) -> str | None:
    """Return the name of the method that fuses `module`, None if it has none.

    Only methods without required arguments count. A submodule may have the same name
    (``self.fuse = nn.Conv2d(...)``), and methods that need arguments do something else.
    """
    for name in METHODS:
        method = getattr(type(module), name, None)
        if not inspect.isfunction(method):
            continue
        _, *parameters = inspect.signature(method).parameters.values()  # without `self`
        if not any(_is_required(parameter) for parameter in parameters):
            return name
    return None


def _is_required(parameter: inspect.Parameter) -> bool:
    variable = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return parameter.default is parameter.empty and parameter.kind not in variable


def _fuse_children(module: nn.Module, replacements: dict[nn.Module, nn.Module]) -> None:
    """Fuse the modules within `module`, in place.

    Parameters
    ----------
    replacements : of the modules seen so far, since a module may occur several times
    """
    for key, child in list(module._modules.items()):
        if child is None:
            continue
        if child not in replacements:
            name = _fusing_method(child)
            result: Any = None
            if name is not None:
                result = getattr(child, name)()
            new = result if isinstance(result, nn.Module) else child
            replacements[child] = replacements[new] = new
            _fuse_children(new, replacements)
        if replacements[child] is not child:
            setattr(module, key, replacements[child])
