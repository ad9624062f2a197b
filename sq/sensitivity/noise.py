"""Noise: what random errors do to the loss that are distributed as a layer's rounding errors are."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sq.config.constraints import Bins, Count, Draws, InputWidths, Positive, Widths
from sq.network.rounding_sites import Sites, price
from sq.network.single_layer_changes import Change, measure
from sq.runtime import monte_carlo as random
from sq.sensitivity import losses
from sq.types.costs import Cost, Rows
from sq.types.problem import Grid, Layer, Problem


def score(  # noqa: PLR0913 (knobs, each a line of YAML)
    problem: Problem,
    *,
    bits: Widths,
    input_bits: InputWidths,
    images: Count,
    bins: Bins,
    draws: Draws,
    tolerance: Positive,
    seed: int,
) -> Cost:
    """Price each layer at each width by E_eps[l(w + eps Delta)] - l(w), that layer alone being noisy.

    eps is drawn from the histogram of (Q(w) - w) / Delta over the layer's weights within the grid;
    weights beyond it are clipped, and get no noise. Inputs alike, from the histogram of what is fed
    in that pass.

    Parameters
    ----------
    bits, input_bits : widths to price, of weights and of inputs
    images : of the calibration batch, of which the first so many are used; all, if there are fewer
    bins : of the histogram, from -Delta / 2 to Delta / 2; a draw is uniform within its bin
    draws : of the noise, at most
    tolerance : largest standard error of a cost, relative to it, at which no more are drawn for it
    seed : of the noise

    Returns
    -------
    cost : in nats an image; below zero where noise happens to help

    Raises
    ------
    SqError : images without labels; the network returns no logits

    Source
    ------
    Shin et al. 2023 (NIPQ), arXiv 2206.00820: noise in the place of rounding while training, from a
    histogram of 256 bins. The price E[l(w + eps Delta)] - l is our reading of it for trained
    networks.
    """
    x, y = problem.batch.x[:images], losses.labels(problem.batch, images, "noise")
    about: dict[str, Any] = {}
    errors: dict[str, Rows] = {}

    def increase(outputs: Tensor, reference: Tensor, place: slice) -> Tensor:
        return losses.cross_entropy(outputs, y[place]) - losses.cross_entropy(reference, y[place])

    def one(sites: Sites) -> Rows:
        choices = sites.choices()

        def draw(number: int, places: list[int]) -> list[float]:
            def change(layer: Layer, width: int) -> Change:
                own = hashlib.sha256(
                    f"{seed} {number} {sites.kind} {layer.name} {width}".encode()
                ).digest()
                put = _on_weight if sites.kind == "weights" else _on_inputs
                noise = put(sites.grid(layer, width), layer, bins, int.from_bytes(own[:7], "big"))
                return Change(sites.kind, layer, noise)

            return measure(
                problem.model, [change(*choices[place]) for place in places], x, increase
            )

        mean, error, made = random.average_each(draw, len(choices), draws, tolerance)
        about[f"draws_{sites.kind}"] = sum(made) / len(made)
        errors[sites.kind] = sites.rows(error)
        return sites.rows(mean)

    weights, inputs = price(problem, bits, input_bits, one)
    about["errors_inputs"] = errors.get("inputs", {})
    return Cost(weights, inputs, "loss", errors.get("weights", {}), about=about)


def _on_weight(grid: Grid, layer: Layer, bins: int, seed: int) -> Callable[[Tensor], Tensor]:
    def put(weight: Tensor) -> Tensor:
        generator = torch.Generator().manual_seed(seed)  # the same noise for all images
        made = noisy(
            weight.reshape(layer.groups, layer.outputs, layer.inputs), grid, bins, generator
        )
        return torch.empty_like(weight).copy_(made.view(weight.shape))

    return put


def _on_inputs(grid: Grid, layer: Layer, bins: int, seed: int) -> Callable[[Tensor], Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return lambda x: noisy(x, grid, bins, generator)


def noisy(values: Tensor, grid: Grid, bins: int, generator: torch.Generator) -> Tensor:
    """Return `values` with noise in place of rounding: clipped to the grid, and eps Delta added within it.

    Delta is the distance of the two grid values around each of `values`.

    Parameters
    ----------
    values : what the grid's tensors broadcast against
    bins : of the histogram of (Q(values) - values) / Delta that eps is drawn from
    """
    low, high = grid.bounds()
    step = grid.gap(values)
    within = (values >= low) & (values <= high)
    seen = ((grid.nearest(values) - values) / step)[within]
    counts = torch.bincount(((seen + 0.5) * bins).long().clamp_(0, bins - 1), minlength=bins)
    share = counts.cumsum(0).double() / max(1, int(counts.sum()))
    at, inside = (torch.rand(values.shape, generator=generator).to(values.device) for _ in range(2))
    drawn = torch.searchsorted(share.to(values.dtype), at.to(values.dtype)).clamp_(max=bins - 1)
    eps = (drawn + inside) / bins - 0.5
    clipped = torch.minimum(torch.maximum(values, low), high)
    return torch.where(within, clipped + eps.to(values.dtype) * step, clipped)
