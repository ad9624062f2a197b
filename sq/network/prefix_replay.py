"""A network run again and again, each time with one layer changed: what comes before that layer is not computed anew.

A pass is a sequence of calls of modules, some within others. What is called before a layer cannot
depend on it. So one pass is recorded, and when the layer is changed, every call that had returned
before the layer was first called returns what it did then: whole blocks at once, single modules in
the block that holds the layer. Functions between modules run again. Averaged over layers this saves
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
from sq.network.rounding_sites import holders
from sq.types.problem import Layer


@dataclass
class _Call:
    module: nn.Module
    last: int  # the number of the last call within it; its own if there is none
    bytes: int = 0  # of the tensor it returns; 0 for anything else, which is not kept
    overwritten: bool = False  # what it returns is changed in place later on
    overwrites: bool = False  # it changes in place what it is given, so that it cannot be left out


class Replay:
    """Passes of `net` that leave out what is known; only within `watching`.

    Parameters
    ----------
    layers : that will be changed, one at a time
    x : one image (1, C, H, W), to learn the order of calls from
    """

    def __init__(self, net: nn.Module, layers: Iterable[Layer], x: Tensor):
        self.net = net
        self._do: Callable[[nn.Module, Callable[..., Any], tuple, dict], Any] = self._survey
        self._next = 0  # the number of the next call
        self._calls: list[_Call] = []
        self._returned: list[tuple[Tensor, int, _Call]] = []
        self._kept: dict[int, Tensor] = {}
        self._skip: set[int] = set()
        with self.watching():
            self._pass(x, self._survey)
        for tensor, version, call in self._returned:
            call.overwritten = tensor._version != version
        self._returned.clear()
        self._before = {layer.name: self._known_before(layer) for layer in layers}
        self._keep = set().union(*self._before.values())
        # that are kept for each image
        self.bytes = sum(self._calls[number].bytes for number in self._keep)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Stand between the modules of the network and their callers while the context lasts."""
        modules = [module for module in self.net.modules() if module is not self.net]
        before = [module.__dict__.get("forward") for module in modules]
        try:
            for module in modules:
                module.forward = self._watch(module, module.forward)
            yield
        finally:
            self._kept.clear()
            for module, earlier in zip(modules, before, strict=True):
                module.__dict__.pop("forward", None)
                if earlier is not None:
                    module.forward = earlier

    def record(self, x: Tensor) -> Tensor:
        """Return what the network makes of `x` (B, C, H, W), and keep what `again` will need."""
        self._kept.clear()
        return self._pass(x, self._record)

    def again(self, x: Tensor, layer: Layer) -> Tensor:
        """Return what the network makes of the `x` recorded, now that nothing but `layer` has been changed."""
        self._skip = self._before[layer.name]
        return self._pass(x, self._replay)

    @torch.no_grad()
    def _pass(self, x: Tensor, do: Callable[..., Any]) -> Tensor:
        self._do, self._next = do, 0
        return forward(self.net, x)

    def _watch(self, module: nn.Module, forward: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *args, **named: self._do(module, forward, args, named)

    def _survey(
        self, module: nn.Module, forward: Callable[..., Any], args: tuple, named: dict
    ) -> Any:
        call = _Call(module, self._next)
        self._calls.append(call)
        self._next += 1
        given = [(tensor, tensor._version) for tensor in tensors([*args, *named.values()])]
        result = forward(*args, **named)
        call.last = self._next - 1
        call.overwrites = any(tensor._version != version for tensor, version in given)
        if isinstance(result, Tensor):
            call.bytes = result.numel() * result.element_size()
            self._returned.append((result, result._version, call))
        return result

    def _known_before(self, layer: Layer) -> set[int]:
        """Return the outermost calls that return one tensor before any module with this layer's weight is called."""
        users = holders(self.net, layer)
        first = next(
            (number for number, call in enumerate(self._calls) if call.module in users), None
        )
        if first is None:
            raise SqError(
                f"layer {layer.name} is not called by the first image, so it cannot be changed alone: choose "
                "sensitivity=label_free, weight_mse or output_error"
            )
        known, number = set(), 0
        while number < first:
            call = self._calls[number]
            if whole := call.last < first and call.bytes > 0 and not call.overwrites:
                known.add(number)
            number = call.last + 1 if whole else number + 1
        return known

    def _number(self, module: nn.Module) -> int:
        number = self._next
        if number >= len(self._calls) or self._calls[number].module is not module:
            raise SqError(
                f"{type(self.net).__name__} calls its modules in another order for other images, so no layer can be "
                "changed alone: choose sensitivity=label_free, weight_mse or output_error"
            )
        self._next += 1
        return number

    def _record(
        self, module: nn.Module, forward: Callable[..., Any], args: tuple, named: dict
    ) -> Any:
        number = self._number(module)
        result = forward(*args, **named)
        if number in self._keep:
            self._kept[number] = result.clone() if self._calls[number].overwritten else result
        return result

    def _replay(
        self, module: nn.Module, forward: Callable[..., Any], args: tuple, named: dict
    ) -> Any:
        number = self._number(module)
        if number not in self._skip:
            return forward(*args, **named)
        self._next = self._calls[number].last + 1
        kept = self._kept[number]
        return kept.clone() if self._calls[number].overwritten else kept
