"""Trace sensitivity: the mean curvature of the loss by a layer's weights, times squared errors."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sq.config.constraints import Count, Draws, InputWidths, Positive, Widths
from sq.network.derivatives import differentiable, sum_over_batches
from sq.network.rounding_sites import Sites, score_sites
from sq.network.weight_swap import original_weight
from sq.runtime import monte_carlo
from sq.sensitivity import losses
from sq.types.costs import Cost, Rows
from sq.types.problem import Problem


def score(  # noqa: PLR0913 (knobs, each a line of YAML)
    problem: Problem,
    *,
    bits: Widths,
    input_bits: InputWidths,
    images: Count,
    together: Count,
    draws: Draws,
    tolerance: Positive,
    seed: int,
) -> Cost:
    """Score each layer at each width by Tr(H_i) / n_i ||D_i||^2, with Tr(H_i) = E_v[v . H_i v].

    v is Rademacher. H_i is the Hessian of the mean cross-entropy by one layer's weights. It is the
    mean of the Hessians of small sets of images, each with a vector of its own, and one pass
    computes several of them. By inputs every image has its own Hessian, and the traces are
    averaged. One gradient serves all layers, but each layer has its own Hessian product: a common
    one would add the noise of all other layers (8 times as many draws on ResNet-20, measured).

    Parameters
    ----------
    bits, input_bits : widths to score, of weights and of inputs
    images : the number of calibration images to use, from the first; all, if there are fewer
    together : images that share a vector
    draws : vectors for each image, at most
    tolerance : no more vectors are drawn once the standard error of each trace, relative to it, is
        at most this
    seed : of the vectors

    Returns
    -------
    cost : twice the expected increase of the loss for errors of random direction, in nats per
        image. A trace may be negative

    Raises
    ------
    SqError : images without labels; the network returns no logits

    Source
    ------
    Dong et al. 2020 (HAWQ-V2), arXiv 1911.03852: Omega_i(b) = Tr(H_i) / n_i ||Q_b(w_i) - w_i||^2. A
    vector for every few images is ours; so are inputs, by the same formula.
    """
    x, y = problem.batch.x[:images], losses.labels(problem.batch, images, "trace")
    about: dict[str, Any] = {}
    errors: dict[str, Rows] = {}  # standard errors, by kind of sites

    def score_kind(sites: Sites) -> Rows:
        def draw(number: int) -> Tensor:
            # Draws have seeds of their own, up to 2^20 of them for each `seed`.
            return estimate_traces(sites, x, y, together, seed * 2**20 + number)

        traces, standard_errors, used_draws = monte_carlo.average(draw, draws, tolerance)
        about[f"draws_{sites.kind}"] = used_draws
        squared_errors = mean_squared_errors(sites, x)  # (choices,)
        errors[sites.kind] = sites.rows((sites.repeat(standard_errors) * squared_errors).tolist())
        return sites.rows((sites.repeat(traces) * squared_errors).tolist())

    weights, inputs = score_sites(problem, bits, input_bits, score_kind)
    about["errors_inputs"] = errors.get("inputs", {})
    return Cost(weights, inputs, "loss, twice", errors.get("weights", {}), about=about)


def estimate_traces(sites: Sites, x: Tensor, y: Tensor, together: int, seed: int) -> Tensor:
    """Return (layers,): one estimate of Tr(H_i), of weights or of the inputs of an image."""
    generator = torch.Generator().manual_seed(seed)

    def batch_traces(batch: Tensor, positions: slice) -> list[Tensor]:
        result = run(batch)
        loss = losses.cross_entropy(result.outputs, y[positions]).sum()
        gradients = result.gradients(loss, create_graph=True)
        # By weights, all images of the batch share a vector.
        vectors = [monte_carlo.signs(tensor, generator) for tensor in result.tensors]
        return [result.layer_sums(result.curvatures(gradients, vectors))]

    with differentiable(sites) as run:
        (sums,) = sum_over_batches(x, batch_traces, together)
        return sums / len(x)


def mean_squared_errors(sites: Sites, x: Tensor) -> Tensor:
    """Return ||D||^2 / n of each choice: of weights, or of the inputs of images `x`."""
    if sites.kind == "weights":
        means = []
        for layer, bits in sites.choices():
            error = sites.error(layer, bits, original_weight(layer))
            means.append(error.square().mean(dtype=torch.float64).cpu())
        return torch.stack(means)

    def batch_sums(batch: Tensor, positions: slice) -> list[Tensor]:
        """Return sums of D^2 (layers, widths), and counts of elements (layers,)."""
        result = run(batch)
        columns = []  # (layers,) for each width
        for bits in sites.bits:
            squares = [error.square() for error in result.rounding_errors(bits)]
            columns.append(result.layer_sums(squares))
        # Layers may be called several times, with inputs of several sizes.
        ones = [torch.ones_like(tensor) for tensor in result.tensors]
        return [torch.stack(columns, 1), result.layer_sums(ones)]

    with differentiable(sites) as run:
        squares, elements = sum_over_batches(x, batch_sums)
    return sites.by_choice(squares / elements.unsqueeze(1))
