"""KL sensitivity: how far the network's predictions move when one layer is rounded. No labels."""

from sq.config.constraints import Count, InputWidths, Widths
from sq.network import single_layer_changes
from sq.network.rounding_sites import Sites, score_sites
from sq.sensitivity import losses
from sq.types.costs import Cost, Rows
from sq.types.problem import Problem


def score(problem: Problem, *, bits: Widths, input_bits: InputWidths, images: Count) -> Cost:
    """Score each layer at each width by the mean over images of KL(f(x) || f_layer(x)).

    f_layer is the network with that layer alone rounded to nearest.

    Parameters
    ----------
    bits, input_bits : widths to score, of weights and of inputs
    images : the number of calibration images to use, from the first; all, if there are fewer

    Returns
    -------
    cost : in nats per image. It is the expected increase of the loss if labels were drawn from the
        network's own predictions

    Raises
    ------
    SqError : the network returns no logits

    Source
    ------
    Cai et al. 2020 (ZeroQ), arXiv 2001.00281: Omega_i(b) = 1/N sum_n KL(f(x_n) || f_(i at b)(x_n)).
    Inputs are ours.
    """
    x = problem.batch.x[:images]

    def score_kind(sites: Sites) -> Rows:
        changes = single_layer_changes.rounding_changes(sites)
        means = single_layer_changes.measure(problem.model, changes, x, losses.kl_of_change)
        return sites.rows(means)

    return Cost(*score_sites(problem, bits, input_bits, score_kind), unit="kl")
