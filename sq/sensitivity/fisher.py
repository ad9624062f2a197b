"""Fisher: squared gradients of the loss, image by image, as the curvature that rounding errors meet."""

from __future__ import annotations

import torch
from torch import Tensor

from sq.config.constraints import Count, InputWidths, Widths
from sq.network import per_sample_gradients
from sq.network.derivatives import total, watched
from sq.network.rounding_sites import Sites, price, weight
from sq.sensitivity import losses
from sq.types.costs import Cost, Rows
from sq.types.problem import Problem


def score(problem: Problem, *, bits: Widths, input_bits: InputWidths, images: Count) -> Cost:
    """Price each layer at each width by 1/2 sum_w E_n[g_n^2] D^2, g_n the gradient of image n's own loss.

    The square is taken of every image's gradient, not of their mean, which is near zero at a
    trained network.

    Parameters
    ----------
    bits, input_bits : widths to price, of weights and of inputs
    images : of the calibration batch, of which the first so many are used; all, if there are fewer

    Returns
    -------
    cost : in nats an image, the Hessian being the diagonal of the empirical Fisher matrix

    Raises
    ------
    SqError : images without labels; the network returns no logits

    Source
    ------
    Li et al. 2021 (BRECQ), arXiv 2102.05426, section 3.2 (the Fisher matrix in the Hessian's place,
    its diagonal, at activations); by weights as in Theis et al. 2018, arXiv 1801.05787.
    """
    x, y = problem.batch.x[:images], losses.labels(problem.batch, images, "fisher")

    def one(sites: Sites) -> Rows:
        return (_weights if sites.kind == "weights" else _inputs)(sites, x, y)

    return Cost(*price(problem, bits, input_bits, one), unit="loss")


def diagonal(sites: Sites, x: Tensor, y: Tensor) -> list[Tensor]:
    """Return E_n[g_n^2] of every layer's weights, each in its module's shape."""
    weights = {layer.name: weight(layer) for layer in sites.layers}

    def own_loss(outputs: Tensor, label: Tensor) -> Tensor:
        return losses.cross_entropy(outputs, label).sum()

    return list(
        per_sample_gradients.mean(
            sites.model.net, weights, x, own_loss, lambda place: y[place]
        ).values()
    )


def _weights(sites: Sites, x: Tensor, y: Tensor) -> Rows:
    squares = dict(zip(sites.modules, diagonal(sites, x, y), strict=True))
    moved = ((layer, sites.error(layer, bits, weight(layer))) for layer, bits in sites.choices())
    return sites.rows(
        [float((squares[s.name] * d.square()).sum(dtype=torch.float64)) / 2 for s, d in moved]
    )


def _inputs(sites: Sites, x: Tensor, y: Tensor) -> Rows:
    def of(part: Tensor, place: slice) -> list[Tensor]:
        own = run(part)
        gradients = own.gradients(losses.cross_entropy(own.outputs, y[place]).sum())
        errors = (own.errors(bits) for bits in sites.bits)
        moved = [
            [(g * d).square() for g, d in zip(gradients, some, strict=True)] for some in errors
        ]
        return [torch.stack([own.sums(some) for some in moved], 1)]

    with watched(sites) as run:
        return sites.rows(sites.flat(total(x, of)[0] / (2 * len(x))).tolist())
