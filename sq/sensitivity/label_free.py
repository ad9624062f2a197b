"""Label-free: how much rounding moves the network's raw outputs, by a Jacobian estimated with random vectors.

At a trained network the Hessian of any loss of the outputs f is about J^T L J, J = df/dw and L the
loss's own second derivative by f. Where L <= c I, as for cross-entropy (c = 1/2), J^T J bounds it
up to a factor that all layers share, and no label is looked at. With E[v v^T] = I,

    diag(J^T J) = E_v[(J^T v)^2].
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sq.config.constraints import Count, Draws, InputWidths, Positive, Widths
from sq.network.derivatives import Pass, total, watched
from sq.network.rounding_sites import Sites, price, weight
from sq.runtime import monte_carlo as random
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
    """Price each layer at each width by 1/2 sum_w h_w D_w^2, h = diag(J^T J), the mean over images, D = Q(w) - w.

    Images that go `together` get independent v, so the square of their common gradient has the
    expectation of the sum of their own squares: one backward pass serves them all.

    Parameters
    ----------
    bits, input_bits : widths to price, of weights and of inputs
    images : of the calibration batch, of which the first so many are used; all, if there are fewer
    together : images in one backward pass; fewer are slower and the estimate of one draw is closer
    draws : vectors for each image, at most
    tolerance : largest standard error of a cost, relative to it, at which no more are drawn
    seed : of the vectors

    Returns
    -------
    cost : half the mean squared change of the outputs, errors of weights taken as independent. Not
    in nats: of
        a detector's raw outputs it has their unit, squared; of logits, half of it bounds the loss,
        as c = 1/2

    Source
    ------
    Gordon et al. 2023 (EPTQ), arXiv 2309.11531, label-free Hessian bound, for weights (Hmse) and
    activations (SLA). They score an activation by its largest channel; that its elements are
    weighed one by one with their own squared error, that v is Rademacher for weights too, and one
    gradient for several images, are ours.
    """
    x = problem.batch.x[:images]
    about: dict[str, Any] = {}
    errors: dict[str, Rows] = {}

    def one(sites: Sites) -> Rows:
        estimate = _weights if sites.kind == "weights" else _inputs

        def draw(number: int) -> Tensor:
            generator = torch.Generator().manual_seed(seed * 2**20 + number)
            return estimate(sites, x, together, generator) / len(x)

        mean, error, made = random.average(draw, draws, tolerance)
        about[f"draws_{sites.kind}"] = made
        errors[sites.kind] = sites.rows(error.tolist())
        return sites.rows(mean.tolist())

    weights, inputs = price(problem, bits, input_bits, one)
    about["errors_inputs"] = errors.get("inputs", {})
    return Cost(weights, inputs, "outputs", errors.get("weights", {}), about=about)


def _gradients(own: Pass, generator: torch.Generator) -> list[Tensor]:
    """Return J^T v of all images of one pass."""
    signs = random.signs(own.outputs, generator)
    return own.gradients((signs * own.outputs).sum())


def _weights(sites: Sites, x: Tensor, together: int, generator: torch.Generator) -> Tensor:
    """Return (layers * widths,) one estimate of the sum over images of 1/2 h D^2."""

    def of(part: Tensor, place: slice) -> list[Tensor]:
        return [g.square() for g in _gradients(run(part), generator)]

    with watched(sites) as run:
        squares = total(x, of, together)
    moved = (sites.error(layer, bits, weight(layer)).square() for layer, bits in sites.choices())
    held = (
        square for s, square in zip(sites.layers, squares, strict=True) for _ in sites.widths(s)
    )
    return torch.stack(
        [(h * d).sum(dtype=torch.float64) / 2 for h, d in zip(held, moved, strict=True)]
    )


def _inputs(sites: Sites, x: Tensor, together: int, generator: torch.Generator) -> Tensor:
    """Return the same of inputs, whose elements belong to one image each."""

    def of(part: Tensor, place: slice) -> list[Tensor]:
        own = run(part)
        squares = [g.square() for g in _gradients(own, generator)]
        errors = (own.errors(bits) for bits in sites.bits)
        moved = [[h * d.square() for h, d in zip(squares, some, strict=True)] for some in errors]
        return [torch.stack([own.sums(products) for products in moved], 1) / 2]

    with watched(sites) as run:
        return sites.flat(total(x, of, together)[0])
