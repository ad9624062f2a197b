"""Mask KL sensitivity: how far predictions move when weights that would round to zero are zero."""

from collections.abc import Callable

from torch import Tensor

from sq.config.constraints import Count, InputWidths, Widths
from sq.network import single_layer_changes
from sq.network.rounding_sites import Sites, refuse_inputs, score_sites
from sq.sensitivity import losses
from sq.types.costs import Cost, Rows
from sq.types.problem import Layer, Problem


def score(problem: Problem, *, bits: Widths, input_bits: InputWidths, images: Count) -> Cost:
    """Score each layer at each width by KL(f(x) || f_masked(x)).

    f_masked is the network with those weights of that layer set to zero that round to zero.

    Parameters
    ----------
    bits : widths to score
    input_bits : has to be [], since weights are masked
    images : the number of calibration images to use, from the first; all, if there are fewer

    Returns
    -------
    cost : in nats per image

    Raises
    ------
    SqError : there are `input_bits`; the network returns no logits

    Source
    ------
    Huang et al. 2023 (OHQ), arXiv 2309.01945: part of a layer's weights masked, KL of the outputs.
    **Our reading**: its formula was not available. Which weights are masked, and that this is how
    bits enter, is ours.
    """
    refuse_inputs("mask_kl", input_bits)
    x = problem.batch.x[:images]

    def score_kind(sites: Sites) -> Rows:
        changes = []
        for layer, width in sites.choices():
            mask = _mask(sites, layer, width)
            changes.append(single_layer_changes.Change("weights", layer, mask))
        means = single_layer_changes.measure(problem.model, changes, x, losses.kl_of_change)
        return sites.rows(means)

    return Cost(*score_sites(problem, bits, [], score_kind), unit="kl")


def _mask(sites: Sites, layer: Layer, bits: int) -> Callable[[Tensor], Tensor]:
    return lambda weight: weight * (sites.nearest(layer, bits, weight) != 0)
