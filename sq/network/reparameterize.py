"""Reparameterization: networks that are trained with several branches, fused as they offer for inference.

RepVGG, MobileOne, FastViT, RepGhost and others train a sum of convolutions that is one convolution
afterwards. Quantized branch by branch they are other networks than the ones that are deployed.
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

# What such modules call it: `fuse` returns the new module, the others change the module in place.
# The order is timm's.
METHODS = ("fuse", "reparameterize", "switch_to_deploy")
TOLERANCE = 1e-6  # relative squared error of the outputs, as for folding BatchNorm


def apply(net: nn.Module, x: Tensor, setting: str) -> nn.Module:
    """Return `net` with every module fused that offers it, and say so; `net` itself where none does.

    Parameters
    ----------
    net : in eval mode; stays as it is
    x : one or a few images as the network takes them, to compare outputs
    setting : the words that turn this off, for messages

    Raises
    ------
    SqError : a module cannot be fused, or that changes the outputs
    """
    names = offers(net)
    if not names:
        return net
    shown = f"{', '.join(names[:3])}{', ...' * (len(names) > 3)}"
    fused = copied(net)
    try:
        _fuse(fused, {})
        fused = fused.eval().requires_grad_(False)
        error = distance(run(fused, x), run(net, x))
    except Exception as problem:  # whatever the network's own code raises
        if out_of_memory.is_out(problem):
            raise
        raise SqError(
            f"{type(net).__name__} offers to fuse {shown}, and fails at it ({one_line(problem)[:160]}): set {setting}"
        ) from problem
    if not error <= TOLERANCE:
        raise SqError(
            f"fusing {shown} as {type(net).__name__} offers it changes the outputs (relative squared error "
            f"{error:.1e}, allowed {TOLERANCE:.0e}): set {setting}"
        )
    say(
        f"reparameterized: {quantity(names, 'module')} fused as {type(net).__name__} offers it ({shown}); "
        f"not with {setting}"
    )
    return fused


def offers(net: nn.Module) -> list[str]:
    """Return the names of the modules in `net` that can be fused, without those within them."""
    names: list[str] = []
    for name, module in net.named_modules():
        inner = any(name.startswith(f"{outer}.") for outer in names)
        if name and not inner and _method(module) is not None:
            names.append(name)
    return names


def _method(module: nn.Module) -> str | None:
    """Return the name of the method that fuses `module`, None if it has none.

    Modules may be called the same (``self.fuse = nn.Conv2d(...)``), and methods that take arguments
    do something else.
    """
    for name in METHODS:
        method = getattr(type(module), name, None)
        if not inspect.isfunction(method):
            continue
        _, *others = inspect.signature(method).parameters.values()
        variable = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
        if all(own.default is not own.empty or own.kind in variable for own in others):
            return name
    return None


def _fuse(module: nn.Module, done: dict[nn.Module, nn.Module]) -> None:
    """Fuse what is inside of `module`, in place; `done` has what became of modules, which may occur several times."""
    for key, child in list(module._modules.items()):
        if child is None:
            continue
        if child not in done:
            name = _method(child)
            result: Any = None if name is None else getattr(child, name)()
            new = result if isinstance(result, nn.Module) else child
            done[child] = done[new] = new
            _fuse(new, done)
        if done[child] is not child:
            setattr(module, key, done[child])
