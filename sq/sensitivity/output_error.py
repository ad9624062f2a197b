"""Output error: what rounding a layer to nearest does to its output on the calibration images."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sq.config.constraints import InputWidths, Widths
from sq.core.progress import track
from sq.hessian import layer_statistics
from sq.network import geometry, hooks
from sq.network.derivatives import total
from sq.network.forward import forward
from sq.network.rounding_sites import Sites, price
from sq.runtime import cpu_threads
from sq.types.costs import Cost, Rows
from sq.types.problem import Layer, Problem


def score(problem: Problem, *, bits: Widths, input_bits: InputWidths) -> Cost:
    """Price each layer at each bit-width by ||(W - Q) X||^2 / ||W X||^2, Q rounded to nearest.

    Inputs are priced by ||W (X - Q(X))||^2 / ||W X||^2, in one pass over all calibration images.

    Parameters
    ----------
    bits, input_bits : the bit-widths to price, of weights and of inputs

    Returns
    -------
    cost : by layer name, then bits; 0 is no error, 1 an output as wrong as zeros would be
    """

    def one(sites: Sites) -> Rows:
        return (_weights if sites.kind == "weights" else _inputs)(sites, problem)

    return Cost(*price(problem, bits, input_bits, one), unit="share")


def _weights(sites: Sites, problem: Problem) -> Rows:
    def row(layer: Layer) -> dict[int, float]:
        W = geometry.weight(layer.module)
        H = problem.statistics.layers[layer.name].hessian
        return {
            b: layer_statistics.relative_error(W, sites.grid(layer, b).nearest(W), H)
            for b in sites.widths(layer)
        }

    if problem.batch.x.device.type == "cpu":
        rows = cpu_threads.each(
            row, sites.layers, "sensitivity", cost=lambda layer: layer.weights * layer.inputs
        )
    else:
        rows = [row(layer) for layer in track(sites.layers, "sensitivity", len(sites.layers))]
    return {layer.name: own for layer, own in zip(sites.layers, rows, strict=True)}


def _inputs(sites: Sites, problem: Problem) -> Rows:
    places = {layer.name: place for place, layer in enumerate(sites.layers)}

    def of(part: Tensor, place: slice) -> list[Tensor]:
        errors = torch.zeros(len(places), len(sites.bits), dtype=torch.float64)
        positions = torch.zeros(len(places), 1, dtype=torch.float64)

        def see(name: str, module: nn.Module, x: Tensor) -> None:
            compute = type(module).forward  # past its hooks, of which this is one
            right, layer = compute(module, x), sites.layers[places[name]]
            positions[places[name]] += geometry.positions(module, right)
            for column, bits in enumerate(sites.bits):
                error = compute(module, sites.nearest(layer, sites.at(layer, bits), x)) - right
                errors[places[name], column] += float(error.square().sum(dtype=torch.float64))

        with torch.no_grad(), hooks.feeding(sites.modules, see):
            forward(problem.model.net, part)
        return [errors, positions]

    errors, positions = total(problem.batch.x, of)
    # H = 2 X X^T / N, so that half of the loss of W is ||W X||^2 for each position.
    own = (
        (geometry.weight(s.module), problem.statistics.layers[s.name].hessian) for s in sites.layers
    )
    outputs = torch.tensor([[layer_statistics.loss(W, H) / 2] for W, H in own], dtype=torch.float64)
    return sites.rows(
        sites.flat(torch.where(outputs > 0, errors / positions / outputs, 0.0)).tolist()
    )
