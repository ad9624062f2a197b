"""Output error: what rounding a layer to nearest does to its output on the calibration images."""

from sq import layers
from sq.console import track
from sq.costs import Cost
from sq.statistics import relative_error
from sq.types import Problem


def score(problem: Problem, *, bits: list[int], input_bits: list[int]) -> Cost:
    """Price each layer at each bit-width by ||(W - Q) X||^2 / ||W X||^2, Q rounded to nearest.

    Parameters
    ----------
    bits : the bit-widths to price

    Returns
    -------
    cost : by layer name, then bits; 0 is no error, 1 an output as wrong as zeros would be
    """
    rows = {}
    for layer in track(problem.model.layers, "sensitivity", len(problem.model.layers)):
        W = layers.weight(layer.module)
        H = problem.statistics.layers[layer.name].hessian
        rows[layer.name] = {b: relative_error(W, problem.fit(W, b).nearest(W), H) for b in bits}
    return Cost(rows, unit="share")
