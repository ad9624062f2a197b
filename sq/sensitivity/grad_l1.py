"""Gradient l1 sensitivity: a first-order bound of what rounding does to the loss."""

from __future__ import annotations

from torch import Tensor

from sq.config.constraints import Count, InputWidths, Widths
from sq.network.derivatives import differentiable, sum_over_batches
from sq.network.rounding_sites import Sites, score_sites
from sq.network.weight_swap import original_weight
from sq.sensitivity import losses
from sq.types.costs import Cost, Rows
from sq.types.problem import Layer, Problem


def score(problem: Problem, *, bits: Widths, input_bits: InputWidths, images: Count) -> Cost:
    """Score each layer at each width by sum_w Delta / 2 |g_w|.

    Delta is the distance of grid values and g the gradient. Rounding moves a weight within the grid
    by at most Delta / 2, which changes the loss by at most that sum to first order: the dual norm.
    For weights g is the gradient of the mean loss, for inputs that of every image's own loss.

    Parameters
    ----------
    bits, input_bits : widths to score, of weights and of inputs
    images : the number of calibration images to use, from the first; all, if there are fewer

    Returns
    -------
    cost : in nats per image

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

    def score_kind(sites: Sites) -> Rows:
        magnitudes = _gradient_magnitudes(sites, x, y)
        scores = []
        for layer, bits in sites.choices():
            half_step = _half_step(sites, layer, bits)
            bound = half_step * magnitudes[layer.name].to(half_step)
            scores.append(float(bound.sum()) / len(x))
        return sites.rows(scores)

    return Cost(*score_sites(problem, bits, input_bits, score_kind), unit="loss")


def _gradient_magnitudes(sites: Sites, x: Tensor, y: Tensor) -> dict[str, Tensor]:
    """Return |g| summed over images, by layer: (G, O, I) of weights, a number of all inputs."""

    def batch_gradients(batch: Tensor, positions: slice) -> list[Tensor]:
        result = run(batch)
        loss = losses.cross_entropy(result.outputs, y[positions]).sum()
        gradients = result.gradients(loss)
        # Magnitudes are taken of each image's gradient by its inputs, but of the summed gradient by
        # weights.
        if sites.kind == "weights":
            return gradients
        return [result.layer_sums([gradient.abs() for gradient in gradients])]

    with differentiable(sites) as run:
        sums = sum_over_batches(x, batch_gradients)
    # Of inputs, the sums are one tensor (layers,); of weights, one tensor for each layer.
    names = [layer.name for layer in sites.layers]
    if sites.kind == "inputs":
        return dict(zip(names, sums[0], strict=True))
    magnitudes: dict[str, Tensor] = {}
    for layer, gradient in zip(sites.layers, sums, strict=True):
        magnitudes[layer.name] = gradient.abs().reshape(layer.groups, layer.outputs, -1)
    return magnitudes


def _half_step(sites: Sites, layer: Layer, bits: int) -> Tensor:
    """Return Delta / 2, the most that rounding moves each weight (G, O, I), or any input."""
    grid = sites.grid(layer, bits)
    if sites.kind == "inputs":
        return grid.half_step()
    weight = original_weight(layer).reshape(layer.groups, layer.outputs, layer.inputs)
    return grid.gap(weight) / 2
