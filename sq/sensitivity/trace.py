"""Trace: how curved the loss is by a layer's weights, on average, times how far rounding moves them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sq.config.constraints import Count, Draws, InputWidths, Positive, Widths
from sq.network.derivatives import Pass, total, watched
from sq.network.rounding_sites import Sites, price, weight
from sq.runtime import monte_carlo as random
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
    """Price each layer at each width by Tr(H_i) / n_i ||D_i||^2, with Tr(H_i) = E_v[v . H_i v], v Rademacher.

    H_i is the Hessian of the mean cross-entropy by one layer's weights, and the mean of the
    Hessians of a few images each, of which every one can have a vector of its own: more of them in
    one pass. Every image has its own Hessian by its inputs, of which the traces are averaged. One
    gradient serves all layers, then each has its product: a common one would add the noise of all
    other layers (8 times as many draws on ResNet-20, measured).

    Parameters
    ----------
    bits, input_bits : widths to price, of weights and of inputs
    images : of the calibration batch, of which the first so many are used; all, if there are fewer
    together : images that share a vector
    draws : vectors for each image, at most
    tolerance : largest standard error of a trace, relative to it, at which no more are drawn
    seed : of the vectors

    Returns
    -------
    cost : twice the loss expected of errors that point anywhere, in nats an image. A trace may be
    negative

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
    errors: dict[str, Rows] = {}

    def one(sites: Sites) -> Rows:
        def draw(number: int) -> Tensor:
            return traced(sites, x, y, together, seed * 2**20 + number)

        traces, spread, made = random.average(draw, draws, tolerance)
        about[f"draws_{sites.kind}"] = made
        sizes = moves(sites, x)
        errors[sites.kind] = sites.rows((sites.spread(spread) * sizes).tolist())
        return sites.rows((sites.spread(traces) * sizes).tolist())

    weights, inputs = price(problem, bits, input_bits, one)
    about["errors_inputs"] = errors.get("inputs", {})
    return Cost(weights, inputs, "loss, twice", errors.get("weights", {}), about=about)


def traced(sites: Sites, x: Tensor, y: Tensor, together: int, seed: int) -> Tensor:
    """Return (layers,) one estimate of Tr(H_i), of weights or of the inputs of an image."""
    generator = torch.Generator().manual_seed(seed)

    def of(part: Tensor, place: slice) -> list[Tensor]:
        own = run(part)
        gradients = own.gradients(losses.cross_entropy(own.outputs, y[place]).sum(), again=True)
        return [own.sums(own.curvatures(gradients, [random.signs(at, generator) for at in own.at]))]

    with watched(sites) as run:
        return total(x, of, together)[0] / len(x)


def moves(sites: Sites, x: Tensor) -> Tensor:
    """Return ||D||^2 / n of each choice: the mean squared rounding error of weights, or of inputs of images `x`."""
    if sites.kind == "weights":
        errors = [sites.error(layer, bits, weight(layer)) for layer, bits in sites.choices()]
        return torch.stack([e.square().mean(dtype=torch.float64).cpu() for e in errors])

    def of(part: Tensor, place: slice) -> list[Tensor]:
        own: Pass = run(part)
        squares = [own.sums([e.square() for e in own.errors(bits)]) for bits in sites.bits]
        return [torch.stack(squares, 1), own.sums([torch.ones_like(at) for at in own.at])]

    with watched(sites) as run:
        squares, elements = total(x, of)
    return sites.flat(squares / elements.unsqueeze(1))
