"""Derivatives of a network's outputs by the weights of its layers, or by what they are fed: all layers in one pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from sq.core.progress import track
from sq.network import hooks
from sq.network.forward import forward
from sq.network.rounding_sites import Sites, lent, weight
from sq.runtime import batching, out_of_memory
from sq.types.problem import Layer

HEAVIER = 4  # times the memory of a forward pass, which a pass that is differentiated twice takes


@dataclass(frozen=True)
class Pass:
    """One pass through a network, and what its outputs can be differentiated by."""

    sites: Sites
    outputs: Tensor
    layers: list[Layer]  # whose weight or input each of `at` is: once a layer, or once a call
    at: list[Tensor]
    moved: list[Tensor]  # D, by which each of `at` has been rounded; [] if it was not

    def gradients(self, of: Tensor, again: bool = False) -> list[Tensor]:
        """Return d of / d at; zeros where it does not depend on that. With `again`, they have derivatives too."""
        return list(torch.autograd.grad(of, self.at, create_graph=again, materialize_grads=True))

    def product(self, gradients: list[Tensor], directions: list[Tensor]) -> list[Tensor]:
        """Return H d for `directions` d, by way of gradients that were taken with `again`."""
        curved = [(g, d) for g, d in zip(gradients, directions, strict=True) if g.requires_grad]
        if not curved:
            return [torch.zeros_like(one) for one in self.at]
        of, by = zip(*curved, strict=True)
        return list(torch.autograd.grad(of, self.at, by, retain_graph=True, materialize_grads=True))

    def curvatures(self, gradients: list[Tensor], directions: list[Tensor]) -> list[Tensor]:
        """Return each d * (H d) with all other directions zero, by way of gradients that were taken with `again`."""
        made = []
        for own, g, d in zip(self.at, gradients, directions, strict=True):
            curved = g.requires_grad
            product = (
                torch.autograd.grad(g, own, d, retain_graph=True, materialize_grads=True)[0]
                if curved
                else 0 * d
            )
            made.append(d * product)
        return made

    def errors(self, bits: int) -> list[Tensor]:
        """Return D = Q(at) - at with all layers at this width, but for those that are settled at others."""
        own, at = self.sites, zip(self.layers, self.at, strict=True)
        return [own.error(layer, own.at(layer, bits), values) for layer, values in at]

    def sums(self, products: list[Tensor]) -> Tensor:
        """Return (layers,) float64: of each layer of `sites`, the sum of all elements of its `products`."""
        places = {layer.name: place for place, layer in enumerate(self.sites.layers)}
        totals = torch.zeros(len(places), dtype=torch.float64)
        for layer, product in zip(self.layers, products, strict=True):
            totals[places[layer.name]] += float(product.detach().sum(dtype=torch.float64))
        return totals


def unfused() -> AbstractContextManager[None]:
    """Let attention be computed in steps for a while: fused, it has no second derivatives and no forward mode."""
    return sdpa_kernel(SDPBackend.MATH)


@contextmanager
def watched(sites: Sites, bits: int | None = None) -> Iterator[Callable[[Tensor], Pass]]:
    """Give a function that runs the network on images (B, ...) and returns the `Pass`.

    Parameters
    ----------
    sites : the weights, or the inputs, to differentiate by
    bits : rounds all of `sites` to nearest first, settled ones to their own width: derivatives are
    those there; None
        leaves the network as it is
    """
    with torch.enable_grad(), unfused():
        if sites.kind == "inputs":
            yield lambda x: _by_inputs(sites, bits, x)
            return
        own = [weight(layer) for layer in sites.layers]
        moved = []
        if bits is not None:
            moved = [
                sites.error(s, sites.at(s, bits), w) for s, w in zip(sites.layers, own, strict=True)
            ]
        at = [
            (w + d if moved else w.clone()).requires_grad_()
            for w, d in zip(own, moved or own, strict=True)
        ]
        with lent(sites.model, dict(zip(sites.modules, at, strict=True))):
            yield lambda x: Pass(sites, forward(sites.model.net, x), sites.layers, at, moved)


def _by_inputs(sites: Sites, bits: int | None, x: Tensor) -> Pass:
    found: list[Layer] = []
    at: list[Tensor] = []
    moved: list[Tensor] = []
    layers = {layer.name: layer for layer in sites.layers}

    def keep(name: str, module: nn.Module, given: Tensor) -> Tensor:
        # A copy, for other layers may be fed the same tensor, and what goes on may change it in
        # place.
        own = given.clone() if given.requires_grad else given.detach().clone().requires_grad_()
        if bits is not None:
            moved.append(sites.error(layers[name], sites.at(layers[name], bits), own))
            own = own + moved[-1]  # a constant: derivatives pass as if nothing had been rounded
        found.append(layers[name])
        at.append(own)
        return own

    with hooks.replacing(sites.modules, keep):
        outputs = forward(sites.model.net, x)
    return Pass(sites, outputs, found, at, moved)


def total(
    x: Tensor, of: Callable[[Tensor, slice], list[Tensor]], together: int | None = None
) -> list[Tensor]:
    """Return the sum of ``of(part, place)`` over images `x` (B, ...), some at a time, `place` saying which they are.

    Parameters
    ----------
    of : its sum over parts must not depend on how large they are (beyond rounding, or chance)
    together : at most so many images at a time; None for what suits their size
    """

    def attempt(size: int) -> list[Tensor]:
        sums: list[Tensor] = []
        for start in track(range(0, len(x), size), "sensitivity"):
            part = x[start : start + size]
            made = of(part, slice(start, start + len(part)))
            sums = [a + b for a, b in zip(sums, made, strict=True)] if sums else made
        return sums

    most = max(1, batching.images_per_pass(x.shape[1:], None) // HEAVIER)
    return out_of_memory.fitting("sensitivity", attempt, min(most, together or most))
