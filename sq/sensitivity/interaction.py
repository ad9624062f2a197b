"""Interaction: what a layer's rounding does to the loss beside that of all the others.

With D the rounding errors of all layers at one width, g the gradient of the loss and H its Hessian,

    l(w + D) - l(w) = sum_i (g_i . D_i + 1/2 D_i . (H D)_i) + ...

is a sum over layers in which H D, one product for all of them, has what each layer's error does to
the others. That is the share of a layer where all have one width. With "pairs" every two layers
have a term of their own, so that an allocation sees what any mix of widths does: see
`sq.sensitivity.logit_curvature`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from sq.config.constraints import Count, InputWidths, Positive, Widths
from sq.network.derivatives import total, watched
from sq.network.rounding_sites import Sites, all_rounded, price
from sq.network.single_layer_changes import Change, measure
from sq.sensitivity import losses as loss
from sq.sensitivity.logit_curvature import Answers
from sq.types.costs import Cost
from sq.types.problem import Layer, Problem

# losses(outputs, place) -> (B,), `place` saying which images these are
Losses = Callable[[Tensor, slice], Tensor]
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
    """Price each layer at each width by what it does to the loss, or to the answers, beside all the others.

    Inputs are priced among inputs alone, and weights among weights.

    Parameters
    ----------
    bits, input_bits : widths to price, of weights and of inputs
    images : of the calibration batch, of which the first so many are used; all, if there are fewer
    variant : "pairs" u_i . S u_i / 2 and, for each pair of layers, u_i . S u_j (`Cost.pairs`,
    weights only), with u
        how far rounding one layer moves the logits and S the curvature of KL divergence at
        `temperature`; needs no labels; "share" |g_i . D_i + 1/2 D_i . (H D)_i|, by one
        Hessian-vector product a width for all layers; "gradient" |g_i(w + D) . D_i|, by one
        gradient a width at the rounded network; "both_ways" the measured increase of the loss by
        layer i at that width, the mean of two: with all other layers in full precision, and with
        all at the lowest width, or the one they are settled at
    temperature : of "pairs": logits are divided by it. Above 1, images that the network is sure of
    count as well
    linear : keep the term g . D of "share". At a trained network g is small, and that of a few
    images is mostly their
        own: False leaves it out

    Returns
    -------
    cost : in nats an image, at `temperature` for "pairs". "share" and "gradient" are magnitudes;
    the shares with
        their signs, which add up to the change of the loss, are in `about`

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
        answers = Answers(x, temperature)
        weights, inputs = price(problem, bits, input_bits, answers.rows)
        about = {"temperature": temperature}
        return Cost(weights, inputs, "kl", pairs=answers.pairs, gram=answers.gram, about=about)
    y = loss.labels(problem.batch, images, f"interaction sensitivity.variant={variant}")

    def losses(outputs: Tensor, place: slice) -> Tensor:
        return loss.cross_entropy(outputs, y[place])

    if variant == "both_ways":
        weights, inputs = price(
            problem, bits, input_bits, lambda sites: sites.rows(both_ways(sites, x, losses))
        )
        return Cost(weights, inputs, "loss")
    estimate = partial(shares, linear=linear) if variant == "share" else slopes
    signed = price(problem, bits, input_bits, lambda sites: sites.rows(estimate(sites, x, losses)))
    weights, inputs = (
        {n: {b: abs(v) for b, v in row.items()} for n, row in rows.items()} for rows in signed
    )
    return Cost(
        weights, inputs, "loss", about={"signed_weights": signed[0], "signed_inputs": signed[1]}
    )


def shares(sites: Sites, x: Tensor, losses: Losses, linear: bool = True) -> list[float]:
    """Return g_i . D_i + 1/2 D_i . (H D)_i for every layer and width, D of all layers at that width; mean over `x`.

    Of a loss that is quadratic in all of them together, those at one width add up to l(w + D) -
    l(w) exactly.
    """

    def of(part: Tensor, place: slice) -> list[Tensor]:
        own = run(part)
        gradients = own.gradients(losses(own.outputs, place).sum(), again=True)
        found = []
        for bits in sites.bits:
            moved = own.errors(bits)
            curved = own.product(gradients, moved)
            slopes = [g if linear else torch.zeros_like(g) for g in gradients]
            found.append(
                own.sums([d * (g + h / 2) for d, g, h in zip(moved, slopes, curved, strict=True)])
            )
        return [torch.stack(found, 1)]

    with watched(sites) as run:
        return sites.flat(total(x, of)[0] / len(x)).tolist()


def slopes(sites: Sites, x: Tensor, losses: Losses) -> list[float]:
    """Return g_i(w + D) . D_i for every layer and width, g at the network with all layers rounded; mean over `x`."""

    def at(bits: int) -> Tensor:
        def of(part: Tensor, place: slice) -> list[Tensor]:
            own = run(part)
            gradients = own.gradients(losses(own.outputs, place).sum())
            return [own.sums([d * g for d, g in zip(own.moved, gradients, strict=True)])]

        with watched(sites, bits) as run:
            return total(x, of)[0] / len(x)

    return sites.flat(torch.stack([at(bits) for bits in sites.bits], 1)).tolist()


def both_ways(sites: Sites, x: Tensor, losses: Losses) -> list[float]:
    """Return the measured increase of the loss by each layer at each width; mean over `x`.

    It is the mean of two: with every other layer in full precision, and with every other at the
    lowest width.
    """

    def figure(outputs: Tensor, reference: Tensor, place: slice) -> Tensor:
        return losses(outputs, place)

    def put(layer: Layer, bits: int | None, fed: dict[str, Tensor]) -> Callable[[Tensor], Tensor]:
        def other(values: Tensor) -> Tensor:
            own = fed.get(layer.name, values)  # an input as it came, before all are rounded
            return own if bits is None else sites.nearest(layer, bits, own)

        return other

    def marginal(fed: dict[str, Tensor]) -> Tensor:
        choices = [(layer, b) for layer in sites.layers for b in (None, *sites.widths(layer))]
        changes = [Change(sites.kind, layer, put(layer, b, fed)) for layer, b in choices]
        found = torch.tensor(measure(sites.model, changes, x, figure), dtype=torch.float64)
        parts = found.split([1 + len(sites.widths(layer)) for layer in sites.layers])
        return torch.cat([own[1:] - own[0] for own in parts])

    among_full = marginal({})
    with all_rounded(sites, min(sites.bits)) as fed:
        among_low = marginal(fed)
    return ((among_full + among_low) / 2).tolist()
