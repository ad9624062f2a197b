"""Derivatives of a network's outputs by layer weights or layer inputs, for all layers at once."""

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
from sq.network.rounding_sites import Sites
from sq.network.weight_swap import original_weight, swapped_weights
from sq.runtime import batching, out_of_memory
from sq.types.problem import Layer

# Memory of a pass that is differentiated twice, as a multiple of that of a forward pass.
SECOND_ORDER_MEMORY = 4


@dataclass(frozen=True)
class DifferentiablePass:
    """One pass through a network, with the tensors that its outputs can be differentiated by.

    `layers`, `tensors` and `errors_applied` have one entry for each layer if the tensors are
    weights, and one for each call of a layer if they are inputs.
    """

    sites: Sites
    outputs: Tensor
    layers: list[Layer]  # that the tensors belong to
    tensors: list[Tensor]  # weights or inputs
    # D, the rounding error that each tensor includes; [] if nothing was rounded
    errors_applied: list[Tensor]

    def gradients(self, of: Tensor, create_graph: bool = False) -> list[Tensor]:
        """Return the gradients of `of` by each tensor, zeros where it does not depend on one.

        With `create_graph` the gradients can be differentiated too.
        """
        gradients = torch.autograd.grad(
            of, self.tensors, create_graph=create_graph, materialize_grads=True
        )
        return list(gradients)

    def hessian_product(self, gradients: list[Tensor], directions: list[Tensor]) -> list[Tensor]:
        """Return H d for `directions` d, from gradients with `create_graph`."""
        # A gradient that depends on no tensor is constant: its derivatives are zero.
        curved_gradients = []
        curved_directions = []
        for gradient, direction in zip(gradients, directions, strict=True):
            if gradient.requires_grad:
                curved_gradients.append(gradient)
                curved_directions.append(direction)
        if not curved_gradients:
            return [torch.zeros_like(tensor) for tensor in self.tensors]
        products = torch.autograd.grad(
            curved_gradients,
            self.tensors,
            curved_directions,
            retain_graph=True,
            materialize_grads=True,
        )
        return list(products)

    def curvatures(self, gradients: list[Tensor], directions: list[Tensor]) -> list[Tensor]:
        """Return d * (H d) of each tensor, its own direction d alone being non-zero.

        The gradients need `create_graph`.
        """
        curvatures = []
        for tensor, gradient, direction in zip(self.tensors, gradients, directions, strict=True):
            if gradient.requires_grad:
                (product,) = torch.autograd.grad(
                    gradient, tensor, direction, retain_graph=True, materialize_grads=True
                )
            else:
                product = 0 * direction
            curvatures.append(direction * product)
        return curvatures

    def rounding_errors(self, bits: int) -> list[Tensor]:
        """Return D = Q(t) - t of each tensor t at `bits`, or at its layer's fixed bits."""
        errors = []
        for layer, tensor in zip(self.layers, self.tensors, strict=True):
            errors.append(self.sites.error(layer, self.sites.width_at(layer, bits), tensor))
        return errors

    def layer_sums(self, products: list[Tensor]) -> Tensor:
        """Return (layers,) float64: the sum of all elements of each layer's `products`."""
        row = {layer.name: i for i, layer in enumerate(self.sites.layers)}
        sums = torch.zeros(len(row), dtype=torch.float64)
        for layer, product in zip(self.layers, products, strict=True):
            sums[row[layer.name]] += float(product.detach().sum(dtype=torch.float64))
        return sums


def unfused_attention() -> AbstractContextManager[None]:
    """Compute attention in separate steps: fused, it lacks second derivatives and forward mode."""
    return sdpa_kernel(SDPBackend.MATH)


@contextmanager
def differentiable(
    sites: Sites, bits: int | None = None
) -> Iterator[Callable[[Tensor], DifferentiablePass]]:
    """Yield a function that runs the network on images (B, ...) and returns the pass.

    Parameters
    ----------
    sites : the weights or the inputs to differentiate by
    bits : all `sites` are rounded to nearest at this width first (those with fixed bits at their
        own), and derivatives are those at the rounded network; None rounds nothing
    """
    with torch.enable_grad(), unfused_attention():
        if sites.kind == "inputs":
            yield lambda x: _by_inputs(sites, bits, x)
            return
        weights: dict[str, Tensor] = {}
        errors: list[Tensor] = []
        for layer in sites.layers:
            weight = original_weight(layer)
            if bits is None:
                weight = weight.clone()
            else:
                error = sites.error(layer, sites.width_at(layer, bits), weight)
                errors.append(error)
                weight = weight + error
            weights[layer.name] = weight.requires_grad_()
        tensors = list(weights.values())
        with swapped_weights(sites.model, weights):
            yield lambda x: DifferentiablePass(
                sites, forward(sites.model.net, x), sites.layers, tensors, errors
            )


def _by_inputs(sites: Sites, bits: int | None, x: Tensor) -> DifferentiablePass:
    """Run the network on images `x` (B, ...), differentiable by the inputs of layers."""
    layers = {layer.name: layer for layer in sites.layers}
    # One entry for each call of a layer.
    called: list[Layer] = []
    tensors: list[Tensor] = []
    errors: list[Tensor] = []

    def record(name: str, module: nn.Module, layer_input: Tensor) -> Tensor:
        layer = layers[name]
        # A copy: other layers may take the same tensor, and the network may change it in place.
        tensor = layer_input.clone()
        if not tensor.requires_grad:
            tensor.requires_grad_()
        if bits is not None:
            error = sites.error(layer, sites.width_at(layer, bits), tensor)
            errors.append(error)
            tensor = tensor + error  # a constant: gradients pass as if nothing had been rounded
        called.append(layer)
        tensors.append(tensor)
        return tensor

    with hooks.replacing(sites.modules, record):
        outputs = forward(sites.model.net, x)
    return DifferentiablePass(sites, outputs, called, tensors, errors)


def sum_over_batches(
    x: Tensor, compute: Callable[[Tensor, slice], list[Tensor]], batch_size: int | None = None
) -> list[Tensor]:
    """Return the sum of ``compute(batch, positions)`` over images `x` (B, ...) in batches.

    Parameters
    ----------
    compute : takes some images and their positions in `x`. Its sum over batches must not depend on
        their size (beyond rounding, or chance)
    batch_size : at most so many images at a time; None for what suits their size
    """

    def attempt(size: int) -> list[Tensor]:
        sums: list[Tensor] = []
        for start in track(range(0, len(x), size), "sensitivity"):
            batch = x[start : start + size]
            terms = compute(batch, slice(start, start + len(batch)))
            if not sums:
                sums = terms
                continue
            sums = [total + term for total, term in zip(sums, terms, strict=True)]
        return sums

    largest = max(1, batching.images_per_pass(x.shape[1:], None) // SECOND_ORDER_MEMORY)
    return out_of_memory.fitting("sensitivity", attempt, min(largest, batch_size or largest))
