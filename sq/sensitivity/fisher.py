"""Fisher sensitivity: squared gradients of single images' losses as curvature of the loss."""

from __future__ import annotations

import torch
from torch import Tensor

from sq.config.constraints import Count, InputWidths, Widths
from sq.network import per_sample_gradients
from sq.network.derivatives import differentiable, sum_over_batches
from sq.network.rounding_sites import Sites, score_sites
from sq.network.weight_swap import original_weight
from sq.sensitivity import losses
from sq.types.costs import Cost, Rows
from sq.types.problem import Problem


def score(problem: Problem, *, bits: Widths, input_bits: InputWidths, images: Count) -> Cost:
    """Score each layer at each width by 1/2 sum_w E_n[g_n^2] D^2.

    g_n is the gradient of image n's own loss, and D the rounding error. Gradients are squared image
    by image: their mean is near zero at a trained network.

    Parameters
    ----------
    bits, input_bits : widths to score, of weights and of inputs
    images : the number of calibration images to use, from the first; all, if there are fewer

    Returns
    -------
    cost : in nats per image; the Hessian is taken as the diagonal of the empirical Fisher matrix

    Raises
    ------
    SqError : images without labels; the network returns no logits

    Source
    ------
    Li et al. 2021 (BRECQ), arXiv 2102.05426, section 3.2 (the Fisher matrix in the Hessian's place,
    its diagonal, at activations); by weights as in Theis et al. 2018, arXiv 1801.05787.
    """
    x, y = problem.batch.x[:images], losses.labels(problem.batch, images, "fisher")

    def score_kind(sites: Sites) -> Rows:
        if sites.kind == "weights":
            return _score_weights(sites, x, y)
        return _score_inputs(sites, x, y)

    return Cost(*score_sites(problem, bits, input_bits, score_kind), unit="loss")


def mean_squared_gradients(sites: Sites, x: Tensor, y: Tensor) -> dict[str, Tensor]:
    """Return E_n[g_n^2] of every layer's weight by name, each in its module's shape."""
    weights = {layer.name: original_weight(layer) for layer in sites.layers}

    def image_loss(outputs: Tensor, label: Tensor) -> Tensor:
        return losses.cross_entropy(outputs, label).sum()

    return per_sample_gradients.mean_squares(
        sites.model.net, weights, x, image_loss, lambda positions: y[positions]
    )


def _score_weights(sites: Sites, x: Tensor, y: Tensor) -> Rows:
    squares = mean_squared_gradients(sites, x, y)
    scores = []
    for layer, bits in sites.choices():
        # both in the shape of the module's weight
        error = sites.error(layer, bits, original_weight(layer))
        terms = squares[layer.name] * error.square()
        scores.append(float(terms.sum(dtype=torch.float64)) / 2)
    return sites.rows(scores)


def _score_inputs(sites: Sites, x: Tensor, y: Tensor) -> Rows:
    def batch_sums(batch: Tensor, positions: slice) -> list[Tensor]:
        """Return (layers, widths): sums over the batch of (g D)^2."""
        result = run(batch)
        # An input's element belongs to one image, so the gradient of the sum is that image's own.
        loss = losses.cross_entropy(result.outputs, y[positions]).sum()
        gradients = result.gradients(loss)
        columns = []  # (layers,) for each width
        for bits in sites.bits:
            errors = result.rounding_errors(bits)
            squares = [(g * error).square() for g, error in zip(gradients, errors, strict=True)]
            columns.append(result.layer_sums(squares))
        return [torch.stack(columns, 1)]

    with differentiable(sites) as run:
        (sums,) = sum_over_batches(x, batch_sums)
        return sites.rows(sites.by_choice(sums / (2 * len(x))).tolist())
