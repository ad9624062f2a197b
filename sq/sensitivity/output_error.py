"""Output error sensitivity: the relative error of a layer's output when the layer is rounded."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sq.config.constraints import InputWidths, Widths
from sq.core.progress import track
from sq.hessian import layer_statistics
from sq.network import geometry, hooks
from sq.network.derivatives import sum_over_batches
from sq.network.forward import forward
from sq.network.rounding_sites import Sites, score_sites
from sq.runtime import cpu_threads
from sq.types.costs import Cost, Rows
from sq.types.problem import Layer, Problem


def score(problem: Problem, *, bits: Widths, input_bits: InputWidths) -> Cost:
    """Score each layer at each width by ||(W - Q) X||^2 / ||W X||^2, Q rounded to nearest.

    Inputs are scored by ||W (X - Q(X))||^2 / ||W X||^2, in one pass over all calibration images.

    Parameters
    ----------
    bits, input_bits : widths to score, of weights and of inputs

    Returns
    -------
    cost : by layer name, then bits; 0 is no error, 1 an output as wrong as zeros would be
    """

    def score_kind(sites: Sites) -> Rows:
        if sites.kind == "weights":
            return _score_weights(sites, problem)
        return _score_inputs(sites, problem)

    return Cost(*score_sites(problem, bits, input_bits, score_kind), unit="share")


def _score_weights(sites: Sites, problem: Problem) -> Rows:
    def row(layer: Layer) -> dict[int, float]:
        W = geometry.weight(layer.module)  # (G, O, I)
        H = problem.statistics.layers[layer.name].hessian  # (G, I, I)
        errors: dict[int, float] = {}
        for bits in sites.widths(layer):
            rounded = sites.grid(layer, bits).nearest(W)
            errors[bits] = layer_statistics.relative_error(W, rounded, H)
        return errors

    # On a CPU the layers are scored side by side, with one thread each.
    if problem.batch.x.device.type == "cpu":
        rows = cpu_threads.each(
            row, sites.layers, "sensitivity", cost=lambda layer: layer.weights * layer.inputs
        )
    else:
        rows = [row(layer) for layer in track(sites.layers, "sensitivity", len(sites.layers))]
    return {layer.name: errors for layer, errors in zip(sites.layers, rows, strict=True)}


def _score_inputs(sites: Sites, problem: Problem) -> Rows:
    # ||W (X - Q(X))||^2 (layers, widths) and N (layers, 1)
    squared_errors, positions = sum_over_batches(
        problem.batch.x, lambda batch, _: _batch_errors(sites, problem.model.net, batch)
    )
    # ||W X||^2 / N: H = 2 X X^T / N, so it is half of the loss of W itself.
    squared_outputs = torch.zeros(len(sites.layers), 1, dtype=torch.float64)
    for row, layer in enumerate(sites.layers):
        H = problem.statistics.layers[layer.name].hessian
        squared_outputs[row] = layer_statistics.loss(geometry.weight(layer.module), H) / 2
    relative_errors = squared_errors / positions / squared_outputs
    # A layer whose outputs are all zero has no error either.
    relative_errors = torch.where(squared_outputs > 0, relative_errors, 0.0)
    return sites.rows(sites.by_choice(relative_errors).tolist())


def _batch_errors(sites: Sites, net: nn.Module, batch: Tensor) -> list[Tensor]:
    """Return squared output errors (layers, widths) and positions (layers, 1) of a batch."""
    row = {layer.name: number for number, layer in enumerate(sites.layers)}
    squared_errors = torch.zeros(len(row), len(sites.bits), dtype=torch.float64)
    positions = torch.zeros(len(row), 1, dtype=torch.float64)

    def compare(name: str, module: nn.Module, x: Tensor) -> None:
        layer = sites.layers[row[name]]
        compute = type(module).forward  # without the module's hooks, of which this is one
        output = compute(module, x)
        positions[row[name]] += geometry.positions(module, output)
        for column, bits in enumerate(sites.bits):
            rounded = sites.nearest(layer, sites.width_at(layer, bits), x)
            error = compute(module, rounded) - output
            squared_errors[row[name], column] += float(error.square().sum(dtype=torch.float64))

    with torch.no_grad(), hooks.feeding(sites.modules, compare):
        forward(net, batch)
    return [squared_errors, positions]
