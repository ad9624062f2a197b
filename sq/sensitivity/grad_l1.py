"""Gradient l1: the worst that rounding can do to the loss to first order, from one gradient alone."""

from __future__ import annotations

from torch import Tensor

from sq.config.constraints import Count, InputWidths, Widths
from sq.network.derivatives import total, watched
from sq.network.rounding_sites import Sites, price, weight
from sq.sensitivity import losses
from sq.types.costs import Cost, Rows
from sq.types.problem import Layer, Problem


def score(problem: Problem, *, bits: Widths, input_bits: InputWidths, images: Count) -> Cost:
    """Price each layer at each width by sum_w Delta / 2 |g_w|, Delta the distance of grid values, g the gradient.

    Rounding moves a weight by at most Delta / 2 (but for those beyond the grid), which changes the
    loss at most by that to first order: the dual norm. The gradient by weights is that of the mean
    loss, by inputs every image's own.

    Parameters
    ----------
    bits, input_bits : widths to price, of weights and of inputs
    images : of the calibration batch, of which the first so many are used; all, if there are fewer

    Returns
    -------
    cost : in nats an image

    Raises
    ------
    SqError : images without labels; the network returns no logits

    Source
    ------
    Alizadeh et al. 2020, Gradient l1 Regularization for Quantization Robustness, arXiv 2002.07520:
    Delta / 2 times the l1 norm of the gradient, by weights and by activations. A Delta for each
    channel, as grids here have, is ours, and so is one for each weight where grid values are not
    equally far apart.
    """
    x, y = problem.batch.x[:images], losses.labels(problem.batch, images, "grad_l1")

    def one(sites: Sites) -> Rows:
        def of(part: Tensor, place: slice) -> list[Tensor]:
            own = run(part)
            gradients = own.gradients(losses.cross_entropy(own.outputs, y[place]).sum())
            return (
                gradients if sites.kind == "weights" else [own.sums([g.abs() for g in gradients])]
            )

        with watched(sites) as run:
            found = total(x, of)
        if sites.kind == "weights":
            sizes = [
                g.abs().reshape(s.groups, s.outputs, -1)
                for s, g in zip(sites.layers, found, strict=True)
            ]
        else:
            sizes = list(found[0])
        held = dict(zip(sites.modules, sizes, strict=True))
        halves = ((layer, _most(sites, layer, width)) for layer, width in sites.choices())
        return sites.rows(
            [float((half * held[s.name].to(half)).sum()) / len(x) for s, half in halves]
        )

    return Cost(*price(problem, bits, input_bits, one), unit="loss")


def _most(sites: Sites, layer: Layer, width: int) -> Tensor:
    """Return Delta / 2, the most that rounding moves a value: of each weight, or of any input."""
    grid = sites.grid(layer, width)
    if sites.kind == "inputs":
        return grid.half_step()
    return grid.gap(weight(layer).reshape(layer.groups, layer.outputs, layer.inputs)) / 2
