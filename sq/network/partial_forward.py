"""Forward passes that stop early, or that return what chosen modules receive and return."""

from __future__ import annotations

from contextlib import suppress

from torch import Tensor, nn

from sq.network import hooks
from sq.network.forward import forward


class _Stop(Exception):  # no error: the rest of the network is not needed
    pass


def input_of(net: nn.Module, name: str, x: Tensor) -> Tensor:
    """Return a copy of the input of module `name` of `net` for images `x`; the pass stops there.

    It is what the module is called with, before other hooks replace it.
    """
    inputs: list[Tensor] = []

    def stop(name: str, module: nn.Module, x: Tensor) -> None:
        inputs.append(x.clone())
        raise _Stop

    with hooks.feeding({name: net.get_submodule(name)}, stop, first=True), suppress(_Stop):
        forward(net, x)
    return inputs[0]


def input_and_output_of(net: nn.Module, name: str, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return copies of the input and output of module `name` for images `x`, and stop there."""
    tensors: list[Tensor] = []

    def keep(name: str, module: nn.Module, x: Tensor) -> None:
        tensors.append(x.clone())  # a copy, because the module may change it in place

    def stop(name: str, module: nn.Module, y: Tensor) -> None:
        tensors.append(y.clone())
        raise _Stop

    modules = {name: net.get_submodule(name)}
    with (
        hooks.feeding(modules, keep, first=True),
        hooks.returning(modules, stop),
        suppress(_Stop),
    ):
        forward(net, x)
    given, returned = tensors
    return given, returned


def inputs_of(net: nn.Module, name: str, x: Tensor, calls: int | None) -> list[Tensor]:
    """Return the input of each call of module `name`, and stop after `calls` calls, if given.

    Other hooks, such as those of quantized inputs, come first.
    """
    inputs: list[Tensor] = []

    def keep(name: str, module: nn.Module, x: Tensor) -> None:
        x = x.detach()  # a forward may turn gradients on
        if len(inputs) + 1 == calls:
            inputs.append(x)
            raise _Stop
        inputs.append(x.clone())  # a copy, because what follows may change it in place

    with hooks.feeding({name: net.get_submodule(name)}, keep), suppress(_Stop):
        forward(net, x)
    return inputs


def outputs_of(net: nn.Module, names: list[str], x: Tensor) -> list[tuple[str, Tensor]]:
    """Return name and output of each call of modules `names` of `net`, in the order of calls."""
    outputs: list[tuple[str, Tensor]] = []

    def keep(name: str, module: nn.Module, y: Tensor) -> None:
        outputs.append((name, y.clone()))  # a copy, because what follows may change it in place

    with hooks.returning({name: net.get_submodule(name) for name in names}, keep):
        forward(net, x)
    return outputs
