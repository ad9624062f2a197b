"""Trace: how curved the loss is by a layer's weights, on average, times how far rounding moves them."""

from __future__ import annotations

import torch
from torch import Tensor

from sq import draws as random
from sq import loss
from sq.costs import Cost, Rows
from sq.derivatives import Pass, total, watched
from sq.knobs import Count, Positive
from sq.sites import Sites, price, weight
from sq.types import Problem


def score(  # noqa: PLR0913 (knobs, each a line of YAML)
    problem: Problem,
    *,
    bits: list[int],
    input_bits: list[int],
    images: Count,
    draws: Count,
    tolerance: Positive,
    seed: int,
) -> Cost:
    """Price each layer at each width by Tr(H_i) / n_i ||D_i||^2, with Tr(H_i) = E_v[v_i . H_ii v_i], v Rademacher.

    H is the Hessian of the mean cross-entropy. One product H v with random vectors of all layers together serves
    every layer: what other layers' vectors add to v_i . (H v)_i is zero in the mean. Every image has its own
    Hessian by its inputs, of which the traces are averaged.

    Parameters
    ----------
    bits, input_bits : widths to price, of weights and of inputs
    images : of the calibration batch, of which the first so many are used; all, if there are fewer
    draws : vectors, at most
    tolerance : largest standard error of a trace, relative to it, at which no more are drawn
    seed : of the vectors

    Returns
    -------
    cost : twice the loss expected of errors that point anywhere, in nats an image. A trace may be negative

    Raises
    ------
    SqError : images without labels; the network returns no logits

    Source
    ------
    Dong et al. 2020 (HAWQ-V2), arXiv 1911.03852: Omega_i(b) = Tr(H_i) / n_i ||Q_b(w_i) - w_i||^2. One product for
    all layers is ours; so are inputs, by the same formula.
    """
    x, y = problem.batch.x[:images], loss.labels(problem.batch, images, "trace")
    about: dict[str, int] = {}
    errors: Rows = {}

    def one(sites: Sites) -> Rows:
        traces, spread, made = random.average(lambda n: traced(sites, x, y, seed * 2**20 + n), draws, tolerance)
        about[f"draws_{sites.kind}"] = made
        sizes = moves(sites, x)
        if sites.kind == "weights":
            errors.update(sites.rows((spread.unsqueeze(1) * sizes).flatten().tolist()))
        return sites.rows((traces.unsqueeze(1) * sizes).flatten().tolist())

    weights, inputs = price(problem, bits, input_bits, one)
    return Cost(weights, inputs, "loss, twice", errors, about=about)


def traced(sites: Sites, x: Tensor, y: Tensor, seed: int) -> Tensor:
    """Return (layers,) one estimate of Tr(H_i), of weights or of the inputs of an image."""
    generator = torch.Generator().manual_seed(seed)
    fixed = [random.signs(weight(layer), generator) for layer in sites.layers] if sites.kind == "weights" else None

    def of(part: Tensor, place: slice) -> list[Tensor]:
        own = run(part)
        vectors = fixed or [random.signs(at, generator) for at in own.at]
        gradients = own.gradients(loss.cross_entropy(own.outputs, y[place]).sum(), again=True)
        products = own.product(gradients, vectors)
        return [own.sums([v * h for v, h in zip(vectors, products, strict=True)])]

    with watched(sites) as run:
        return total(x, of)[0] / len(x)


def moves(sites: Sites, x: Tensor) -> Tensor:
    """Return (layers, widths) ||D||^2 / n: the mean squared rounding error of weights, or of inputs of images `x`."""
    if sites.kind == "weights":
        errors = [sites.error(layer, bits, weight(layer)) for layer, bits in sites.choices()]
        return torch.stack([e.square().mean(dtype=torch.float64).cpu() for e in errors]).view(len(sites.layers), -1)

    def of(part: Tensor, place: slice) -> list[Tensor]:
        own: Pass = run(part)
        squares = [own.sums([e.square() for e in own.errors(bits)]) for bits in sites.bits]
        return [torch.stack(squares, 1), own.sums([torch.ones_like(at) for at in own.at])]

    with watched(sites) as run:
        squares, elements = total(x, of)
    return squares / elements.unsqueeze(1)
