"""Repeat a network's pass with one layer changed, without recomputing what precedes that layer.

A pass is a sequence of calls of modules, some within others. Calls before a layer do not depend on
it. So one pass is recorded. When a layer is changed, every call that had returned before the
layer's first call returns its recorded result: whole blocks at once, and single modules in the
block that holds the layer. Functions between modules run again. Averaged over layers this saves
about half of the work, and the outputs are the same, bit by bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sq.errors import SqError
from sq.network.forward import forward
from sq.network.products import tensors
from sq.network.weight_swap import weight_users
from sq.types.problem import Layer

# How a watched module is run: (module, its forward, args, kwargs) -> result.
Run = Callable[[nn.Module, Callable[..., Any], tuple, dict], Any]


@dataclass
class _Call:
    """One call of a module in a pass. Calls are numbered in the order in which they begin."""

    module: nn.Module
    last: int  # number of the last call within it; its own number if there is none
    bytes: int = 0  # of the tensor it returns; 0 for any other result, which is not recorded
    overwritten: bool = False  # its result is changed in place later
    overwrites: bool = False  # it changes an argument in place, so it cannot be skipped


class Replay:
    """Passes of `net` in which known calls are skipped; only within `watching`.

    Parameters
    ----------
    layers : that will be changed, one at a time
    x : one image (1, C, H, W), which shows the order of calls
    """

    def __init__(self, net: nn.Module, layers: Iterable[Layer], x: Tensor):
        self.net = net
        self._run: Run = self._survey
        self._next = 0  # number of the next call
        self._calls: list[_Call] = []
        self._results: list[tuple[Tensor, int, _Call]] = []  # with the version when returned
        self._recorded: dict[int, Tensor] = {}  # results by number of the call
        self._skip: set[int] = set()  # numbers of the calls to skip
        with self.watching():
            self._pass(x, self._survey)
        for tensor, version, call in self._results:
            call.overwritten = tensor._version != version
        self._results.clear()
        self._known = {layer.name: self._known_before(layer) for layer in layers}
        self._to_record = set().union(*self._known.values())
        # stored for each image
        self.bytes = sum(self._calls[number].bytes for number in self._to_record)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Replace the forward of each module within the network, while the context lasts."""
        modules = [module for module in self.net.modules() if module is not self.net]
        previous = [module.__dict__.get("forward") for module in modules]
        try:
            for module in modules:
                module.forward = self._watched(module, module.forward)
            yield
        finally:
            self._recorded.clear()
            for module, forward in zip(modules, previous, strict=True):
                module.__dict__.pop("forward", None)
                if forward is not None:
                    module.forward = forward

    def record(self, x: Tensor) -> Tensor:
        """Return the network's outputs for `x` (B, C, H, W), and record what `again` needs."""
        self._recorded.clear()
        return self._pass(x, self._record)

    def again(self, x: Tensor, layer: Layer) -> Tensor:
        """Return the outputs for the recorded `x`, now that only `layer` is changed."""
        self._skip = self._known[layer.name]
        return self._pass(x, self._replay)

    @torch.no_grad()
    def _pass(self, x: Tensor, run: Run) -> Tensor:
        self._run, self._next = run, 0
        return forward(self.net, x)

    def _watched(self, module: nn.Module, forward: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *args, **kwargs: self._run(module, forward, args, kwargs)

    def _survey(
        self, module: nn.Module, forward: Callable[..., Any], args: tuple, kwargs: dict
    ) -> Any:
        """Run a module and note its call."""
        call = _Call(module, self._next)
        self._calls.append(call)
        self._next += 1
        arguments = list(tensors([*args, *kwargs.values()]))
        versions = _versions(arguments)
        result = forward(*args, **kwargs)
        call.last = self._next - 1
        call.overwrites = versions != _versions(arguments)
        if isinstance(result, Tensor):
            call.bytes = result.numel() * result.element_size()
            self._results.append((result, result._version, call))
        return result

    def _known_before(self, layer: Layer) -> set[int]:
        """Return the calls that can be skipped when `layer` is changed, outermost ones only.

        They return one tensor before any module with this layer's weight is called.
        """
        first = self._first_use(layer)
        numbers: set[int] = set()
        number = 0
        while number < first:
            call = self._calls[number]
            if call.last < first and call.bytes > 0 and not call.overwrites:
                numbers.add(number)
                number = call.last + 1
            else:
                number += 1  # the calls within it may be skipped
        return numbers

    def _first_use(self, layer: Layer) -> int:
        """Return the number of the first call of a module with this layer's weight."""
        users = weight_users(self.net, layer)
        for number, call in enumerate(self._calls):
            if call.module in users:
                return number
        raise SqError(
            f"layer {layer.name} is not called by the first image, so it cannot be changed alone: "
            "choose sensitivity=label_free, weight_mse or output_error"
        )

    def _number(self, module: nn.Module) -> int:
        """Return the number of the call of `module` that begins now."""
        number = self._next
        if number >= len(self._calls) or self._calls[number].module is not module:
            raise SqError(
                f"{type(self.net).__name__} calls its modules in another order for other images, "
                "so no layer can be changed alone: choose sensitivity=label_free, weight_mse or "
                "output_error"
            )
        self._next += 1
        return number

    def _record(
        self, module: nn.Module, forward: Callable[..., Any], args: tuple, kwargs: dict
    ) -> Any:
        """Run a module, and record its result if a change needs it."""
        number = self._number(module)
        result = forward(*args, **kwargs)
        if number in self._to_record:
            self._recorded[number] = self._protected(number, result)
        return result

    def _replay(
        self, module: nn.Module, forward: Callable[..., Any], args: tuple, kwargs: dict
    ) -> Any:
        """Return a module's recorded result if its call is known, else run it."""
        number = self._number(module)
        if number not in self._skip:
            return forward(*args, **kwargs)
        self._next = self._calls[number].last + 1
        return self._protected(number, self._recorded[number])

    def _protected(self, number: int, result: Tensor) -> Tensor:
        """Return the result of a call, as a copy if the network changes it in place later."""
        return result.clone() if self._calls[number].overwritten else result


def _versions(arguments: list[Tensor]) -> list[int]:
    """Return how often each tensor has been changed in place."""
    return [tensor._version for tensor in arguments]
