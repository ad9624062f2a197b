"""Label-free sensitivity: how much rounding moves the raw outputs, by a randomised Jacobian.

At a trained network the Hessian of any loss of the outputs f is about J^T L J, J = df/dw and L the
second derivative of the loss by f. If L <= c I, as for cross-entropy (c = 1/2), J^T J bounds it up
to a factor that all layers share, and no label is needed. With E[v v^T] = I,

    diag(J^T J) = E_v[(J^T v)^2].
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sq.config.constraints import Count, Draws, InputWidths, Positive, Widths
from sq.network.derivatives import DifferentiablePass, differentiable, sum_over_batches
from sq.network.rounding_sites import Sites, score_sites
from sq.network.weight_swap import original_weight
from sq.runtime import monte_carlo
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
    """Score each layer at each width by 1/2 sum_w h_w D_w^2, with h = diag(J^T J).

    D = Q(w) - w, and h is the mean over images. Images that are processed `together` get
    independent v. Then the square of their common gradient has the expectation of the sum of their
    own squares, so one backward pass serves them all.

    Parameters
    ----------
    bits, input_bits : widths to score, of weights and of inputs
    images : the number of calibration images to use, from the first; all, if there are fewer
    together : images in one backward pass; fewer are slower, but the estimate of one draw is closer
    draws : vectors for each image, at most
    tolerance : no more vectors are drawn once the standard error of each cost, relative to it, is
        at most this
    seed : of the vectors

    Returns
    -------
    cost : half the mean squared change of the outputs, errors of weights taken as independent. It
        is not in nats: for a detector's raw outputs it has their unit, squared; for logits, half of
        it bounds the loss, as c = 1/2

    Source
    ------
    Gordon et al. 2023 (EPTQ), arXiv 2309.11531, label-free Hessian bound, for weights (Hmse) and
    activations (SLA). They score an activation by its largest channel; that its elements are
    weighed one by one with their own squared error, that v is Rademacher for weights too, and one
    gradient for several images, are ours.
    """
    x = problem.batch.x[:images]
    about: dict[str, Any] = {}
    errors: dict[str, Rows] = {}  # standard errors, by kind of sites

    def score_kind(sites: Sites) -> Rows:
        estimate = _estimate_weights if sites.kind == "weights" else _estimate_inputs

        def draw(number: int) -> Tensor:
            # Draws have seeds of their own, up to 2^20 of them for each `seed`.
            generator = torch.Generator().manual_seed(seed * 2**20 + number)
            return estimate(sites, x, together, generator) / len(x)

        mean, error, used_draws = monte_carlo.average(draw, draws, tolerance)
        about[f"draws_{sites.kind}"] = used_draws
        errors[sites.kind] = sites.rows(error.tolist())
        return sites.rows(mean.tolist())

    weights, inputs = score_sites(problem, bits, input_bits, score_kind)
    about["errors_inputs"] = errors.get("inputs", {})
    return Cost(weights, inputs, "outputs", errors.get("weights", {}), about=about)


def _squared_gradients(result: DifferentiablePass, generator: torch.Generator) -> list[Tensor]:
    """Return (J^T v)^2 of each tensor, for all images of one pass."""
    signs = monte_carlo.signs(result.outputs, generator)
    # J^T v of a layer is the gradient of v . f.
    gradients = result.gradients((signs * result.outputs).sum())
    return [gradient.square() for gradient in gradients]


def _estimate_weights(sites: Sites, x: Tensor, together: int, generator: torch.Generator) -> Tensor:
    """Return (choices,): one estimate of the sum over images of 1/2 h D^2, for weights."""

    def batch_squares(batch: Tensor, positions: slice) -> list[Tensor]:
        return _squared_gradients(run(batch), generator)

    with differentiable(sites) as run:
        squares = sum_over_batches(x, batch_squares, together)
    # (J^T v)^2 in the shape of each module's weight, an estimate of h
    squares_by_name = dict(zip(sites.modules, squares, strict=True))
    scores = []
    for layer, bits in sites.choices():
        squared_error = sites.error(layer, bits, original_weight(layer)).square()
        terms = squares_by_name[layer.name] * squared_error
        scores.append(terms.sum(dtype=torch.float64) / 2)
    return torch.stack(scores)


def _estimate_inputs(sites: Sites, x: Tensor, together: int, generator: torch.Generator) -> Tensor:
    """Return (choices,): the same for inputs, whose elements belong to one image each."""

    def batch_sums(batch: Tensor, positions: slice) -> list[Tensor]:
        """Return (layers, widths)."""
        result = run(batch)
        squares = _squared_gradients(result, generator)
        columns = []  # (layers,) for each width
        for bits in sites.bits:
            errors = result.rounding_errors(bits)
            terms = [h * error.square() for h, error in zip(squares, errors, strict=True)]
            columns.append(result.layer_sums(terms))
        return [torch.stack(columns, 1) / 2]

    with differentiable(sites) as run:
        (sums,) = sum_over_batches(x, batch_sums, together)
        return sites.by_choice(sums)
