"""Interaction sensitivity: the effect of a layer's rounding on the loss beside all others'.

With D the rounding errors of all layers at one width, g the gradient of the loss and H its Hessian,

    l(w + D) - l(w) = sum_i (g_i . D_i + 1/2 D_i . (H D)_i) + ...

is a sum over layers. H D, one product for all of them, holds the effect of each layer's error on
the others. So a term is the share of a layer if all layers have the same width. With "pairs" every
two layers have a term of their own, and an allocation sees the effect of any mix of widths: see
`sq.sensitivity.logit_curvature`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from sq.config.constraints import Count, InputWidths, Positive, Widths
from sq.network.derivatives import differentiable, sum_over_batches
from sq.network.rounding_sites import Sites, all_rounded, score_sites
from sq.network.single_layer_changes import Change, measure
from sq.sensitivity import losses
from sq.sensitivity.logit_curvature import LogitCurvature
from sq.types.costs import Cost, Rows
from sq.types.problem import Layer, Problem

# image_losses(outputs, positions) -> (B,); `positions` says which of all images these are
ImageLosses = Callable[[Tensor, slice], Tensor]
Variant = Literal["share", "gradient", "both_ways", "pairs"]


def score(  # noqa: PLR0913 (knobs, each a line of YAML)
    problem: Problem,
    *,
    bits: Widths,
    input_bits: InputWidths,
    images: Count,
    variant: Variant,
    temperature: Positive,
    linear: bool,
) -> Cost:
    """Score each layer at each width by its effect on the loss, or on the logits, beside others'.

    Inputs are scored among inputs alone, and weights among weights.

    Parameters
    ----------
    bits, input_bits : widths to score, of weights and of inputs
    images : the number of calibration images to use, from the first; all, if there are fewer
    variant : "pairs" is u_i . S u_i / 2 and, for each pair of layers, u_i . S u_j (`Cost.pairs`,
        weights only), with u the change of the logits when one layer is rounded and S the curvature
        of KL divergence at `temperature`; it needs no labels. "share" is |g_i . D_i + 1/2 D_i . (H
        D)_i|, by one Hessian-vector product for each width. "gradient" is |g_i(w + D) . D_i|, by
        one gradient for each width, at the rounded network. "both_ways" is the measured increase of
        the loss by layer i at that width, the mean of two: with all other layers in full precision,
        and with all at the lowest width (or their fixed one)
    temperature : of "pairs": logits are divided by it. Above 1, images of which the network is sure
        count as well
    linear : keep the term g . D of "share". At a trained network g is small, and that of a few
        images is mostly their own: False leaves it out

    Returns
    -------
    cost : in nats per image, at `temperature` for "pairs". "share" and "gradient" are magnitudes;
        the signed shares, which add up to the change of the loss, are in `about`

    Raises
    ------
    SqError : images without labels, for all but "pairs"; the network returns no logits

    Source
    ------
    Lee et al. 2021, arXiv 2103.10051: **our reading**, for only the abstract (task loss,
    interaction with other layers, labelled data) was available: "share" is V1, "gradient" V2,
    "both_ways" V3. "pairs" is our extension.
    """
    x = problem.batch.x[:images]
    if variant == "pairs":
        curvature = LogitCurvature(x, temperature)
        weights, inputs = score_sites(problem, bits, input_bits, curvature.rows)
        about = {"temperature": temperature}
        return Cost(weights, inputs, "kl", pairs=curvature.pairs, gram=curvature.gram, about=about)
    y = losses.labels(problem.batch, images, f"interaction sensitivity.variant={variant}")

    def image_losses(outputs: Tensor, positions: slice) -> Tensor:
        return losses.cross_entropy(outputs, y[positions])

    def score_kind(sites: Sites) -> Rows:
        if variant == "both_ways":
            return sites.rows(both_ways(sites, x, image_losses))
        if variant == "share":
            return sites.rows(shares(sites, x, image_losses, linear))
        return sites.rows(slopes(sites, x, image_losses))

    weights, inputs = score_sites(problem, bits, input_bits, score_kind)
    if variant == "both_ways":
        return Cost(weights, inputs, "loss")
    # A cost should not be negative, but the signs are needed to see how the shares add up.
    signed = {"signed_weights": weights, "signed_inputs": inputs}
    return Cost(_magnitudes(weights), _magnitudes(inputs), "loss", about=signed)


def _magnitudes(rows: Rows) -> Rows:
    magnitudes: Rows = {}
    for name, row in rows.items():
        magnitudes[name] = {bits: abs(value) for bits, value in row.items()}
    return magnitudes


def shares(sites: Sites, x: Tensor, image_losses: ImageLosses, linear: bool = True) -> list[float]:
    """Return g_i . D_i + 1/2 D_i . (H D)_i for every layer and width; the mean over images `x`.

    D are the errors of all layers at that width. For a loss that is quadratic in all of them
    together, the values of one width add up to l(w + D) - l(w) exactly.
    """

    def batch_sums(batch: Tensor, positions: slice) -> list[Tensor]:
        """Return (layers, widths): sums over the batch."""
        result = run(batch)
        loss = image_losses(result.outputs, positions).sum()
        gradients = result.gradients(loss, create_graph=True)
        columns = []  # (layers,) for each width
        for bits in sites.bits:
            errors = result.rounding_errors(bits)
            curved = result.hessian_product(gradients, errors)  # H D
            terms = []
            for error, gradient, product in zip(errors, gradients, curved, strict=True):
                slope = gradient if linear else torch.zeros_like(gradient)
                terms.append(error * (slope + product / 2))
            columns.append(result.layer_sums(terms))
        return [torch.stack(columns, 1)]

    with differentiable(sites) as run:
        (sums,) = sum_over_batches(x, batch_sums)
        return sites.by_choice(sums / len(x)).tolist()


def slopes(sites: Sites, x: Tensor, image_losses: ImageLosses) -> list[float]:
    """Return g_i(w + D) . D_i for every layer and width; the mean over images `x`.

    g is the gradient at the network with all layers rounded.
    """

    def at_width(bits: int) -> Tensor:
        """Return (layers,)."""

        def batch_sums(batch: Tensor, positions: slice) -> list[Tensor]:
            result = run(batch)
            gradients = result.gradients(image_losses(result.outputs, positions).sum())
            errors = result.errors_applied  # D, which the pass includes
            terms = [error * g for error, g in zip(errors, gradients, strict=True)]
            return [result.layer_sums(terms)]

        with differentiable(sites, bits) as run:
            (sums,) = sum_over_batches(x, batch_sums)
            return sums / len(x)

    columns = [at_width(bits) for bits in sites.bits]
    return sites.by_choice(torch.stack(columns, 1)).tolist()


def both_ways(sites: Sites, x: Tensor, image_losses: ImageLosses) -> list[float]:
    """Return the measured increase of the loss by each layer at each width; mean over images `x`.

    It is the mean of two: with every other layer in full precision, and with every other layer at
    the lowest width.
    """
    # with all others in full precision, then with all at the lowest width
    alone = _loss_increases(sites, x, image_losses, {})
    with all_rounded(sites, min(sites.bits)) as inputs:
        among_rounded = _loss_increases(sites, x, image_losses, inputs)
    return ((alone + among_rounded) / 2).tolist()


def _loss_increases(
    sites: Sites, x: Tensor, image_losses: ImageLosses, inputs: dict[str, Tensor]
) -> Tensor:
    """Return the increase of the mean loss by each layer at each width, in the network as it is.

    Parameters
    ----------
    inputs : of layers in the current pass, by name, before they were rounded; {} if they are not
    """

    def change(layer: Layer, bits: int | None) -> Change:
        """Return the layer at `bits`, or unrounded if that is None."""

        def put(values: Tensor) -> Tensor:
            # With all inputs rounded, `values` are rounded already: start from the original.
            original = inputs.get(layer.name, values)
            return original if bits is None else sites.nearest(layer, bits, original)

        return Change(sites.kind, layer, put)

    def figure(outputs: Tensor, reference: Tensor, positions: slice) -> Tensor:
        return image_losses(outputs, positions)

    changes = []
    counts = []  # of changes of each layer
    for layer in sites.layers:
        widths = (None, *sites.widths(layer))
        changes += [change(layer, bits) for bits in widths]
        counts.append(len(widths))
    mean_losses = torch.tensor(measure(sites.model, changes, x, figure), dtype=torch.float64)
    # The first loss of each layer is that without rounding it.
    parts = mean_losses.split(counts)
    return torch.cat([layer_losses[1:] - layer_losses[0] for layer_losses in parts])
