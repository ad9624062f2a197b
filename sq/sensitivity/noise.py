"""Noise sensitivity: the effect on the loss of noise with the distribution of rounding errors."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sq.config.constraints import Bins, Count, Draws, InputWidths, Positive, Widths
from sq.network.rounding_sites import Sites, score_sites
from sq.network.single_layer_changes import Change, measure
from sq.runtime import monte_carlo
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
    """Score each layer at each width by E_eps[l(w + eps Delta)] - l(w), that layer alone noisy.

    eps is drawn from the histogram of (Q(w) - w) / Delta over the layer's weights within the grid;
    weights beyond it are clipped, and get no noise. For inputs the histogram is that of the layer's
    inputs in the same pass.

    Parameters
    ----------
    bits, input_bits : widths to score, of weights and of inputs
    images : the number of calibration images to use, from the first; all, if there are fewer
    bins : of the histogram, from -Delta / 2 to Delta / 2; a draw is uniform within its bin
    draws : of the noise, at most
    tolerance : no more noise is drawn for a cost once its standard error, relative to it, is at
        most this
    seed : of the noise

    Returns
    -------
    cost : in nats per image; below zero if noise happens to help

    Raises
    ------
    SqError : images without labels; the network returns no logits

    Source
    ------
    Shin et al. 2023 (NIPQ), arXiv 2206.00820: noise in the place of rounding while training, from a
    histogram of 256 bins. The score E[l(w + eps Delta)] - l is our reading of it for trained
    networks.
    """
    x, y = problem.batch.x[:images], losses.labels(problem.batch, images, "noise")
    about: dict[str, Any] = {}
    errors: dict[str, Rows] = {}  # standard errors, by kind of sites

    def score_kind(sites: Sites) -> Rows:
        choices = sites.choices()

        def draw(number: int, indices: list[int]) -> list[float]:
            changes = []
            for index in indices:
                layer, width = choices[index]
                # A layer's noise does not depend on which other layers are still drawn.
                noise_seed = _seed(f"{seed} {number} {sites.kind} {layer.name} {width}")
                changes.append(_noisy_layer(sites, layer, width, bins, noise_seed))
            return measure(problem.model, changes, x, losses.cross_entropy_increase(y))

        means, standard_errors, used_draws = monte_carlo.average_each(
            draw, len(choices), draws, tolerance
        )
        about[f"draws_{sites.kind}"] = sum(used_draws) / len(used_draws)
        errors[sites.kind] = sites.rows(standard_errors)
        return sites.rows(means)

    weights, inputs = score_sites(problem, bits, input_bits, score_kind)
    about["errors_inputs"] = errors.get("inputs", {})
    return Cost(weights, inputs, "loss", errors.get("weights", {}), about=about)


def _seed(text: str) -> int:
    """Return a seed of 56 bits that follows from `text`."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big")


def _noisy_layer(sites: Sites, layer: Layer, width: int, bins: int, seed: int) -> Change:
    """Return the change of a layer whose weights or inputs get noise as of rounding to `width`."""
    grid = sites.grid(layer, width)
    if sites.kind == "weights":
        return Change("weights", layer, _weight_noise(grid, layer, bins, seed))
    return Change("inputs", layer, _input_noise(grid, bins, seed))


def _weight_noise(grid: Grid, layer: Layer, bins: int, seed: int) -> Callable[[Tensor], Tensor]:
    def put(weight: Tensor) -> Tensor:
        # seeded here, so that all images get the same noise
        generator = torch.Generator().manual_seed(seed)
        values = weight.reshape(layer.groups, layer.outputs, layer.inputs)
        noisy_values = noisy(values, grid, bins, generator)
        # in the weight's memory layout, which may be channels last
        return torch.empty_like(weight).copy_(noisy_values.view(weight.shape))

    return put


def _input_noise(grid: Grid, bins: int, seed: int) -> Callable[[Tensor], Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return lambda x: noisy(x, grid, bins, generator)


def noisy(values: Tensor, grid: Grid, bins: int, generator: torch.Generator) -> Tensor:
    """Return `values` clipped to the grid, with noise eps Delta in place of rounding within it.

    Delta is the distance of the two grid values around each of `values`.

    Parameters
    ----------
    values : of any shape that the grid's tensors broadcast against
    bins : of the histogram of (Q(values) - values) / Delta that eps is drawn from
    """
    low, high = grid.bounds()
    step = grid.gap(values)  # Delta, of each value
    within = (values >= low) & (values <= high)
    relative_errors = ((grid.nearest(values) - values) / step)[within]  # in [-1/2, 1/2]
    eps = _draw_from_histogram(relative_errors, bins, values, generator)
    clipped = torch.minimum(torch.maximum(values, low), high)
    return torch.where(within, clipped + eps.to(values.dtype) * step, clipped)


def _draw_from_histogram(
    relative_errors: Tensor, bins: int, like: Tensor, generator: torch.Generator
) -> Tensor:
    """Return numbers of the shape of `like`, drawn from the histogram of `relative_errors`.

    The histogram covers [-1/2, 1/2]. A number is uniform within its bin.
    """
    error_bins = ((relative_errors + 0.5) * bins).long().clamp_(0, bins - 1)
    # (bins,), without values within the grid all zero
    counts = torch.bincount(error_bins, minlength=bins)
    cumulative = counts.cumsum(0).double() / max(1, int(counts.sum()))
    # Drawn on the CPU, so that the noise does not depend on the device.
    quantile = torch.rand(like.shape, generator=generator).to(like.device)
    offset = torch.rand(like.shape, generator=generator).to(like.device)  # within the bin
    drawn_bins = torch.searchsorted(cumulative.to(like.dtype), quantile.to(like.dtype))
    return (drawn_bins.clamp_(max=bins - 1) + offset) / bins - 0.5
