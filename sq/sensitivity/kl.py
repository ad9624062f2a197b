"""KL divergence: how far the network's answers move when one layer alone is rounded. Needs no labels."""

from sq.config.constraints import Count, InputWidths, Widths
from sq.network import single_layer_changes
from sq.network.rounding_sites import Sites, price
from sq.sensitivity import losses
from sq.types.costs import Cost, Rows
from sq.types.problem import Problem


def score(problem: Problem, *, bits: Widths, input_bits: InputWidths, images: Count) -> Cost:
    """Price each layer at each width by the mean over images of KL(f(x) || f(x) with that layer rounded to nearest).

    Parameters
    ----------
    bits, input_bits : widths to price, of weights and of inputs
    images : of the calibration batch, of which the first so many are used; all, if there are fewer

    Returns
    -------
    cost : in nats an image. It is the loss increase expected of labels drawn from what the network
    itself says

    Raises
    ------
    SqError : the network returns no logits

    Source
    ------
    Cai et al. 2020 (ZeroQ), arXiv 2001.00281: Omega_i(b) = 1/N sum_n KL(f(x_n) || f_(i at b)(x_n)).
    Inputs are ours.
    """
    x = problem.batch.x[:images]

    def one(sites: Sites) -> Rows:
        changes = single_layer_changes.rounding(sites)
        return sites.rows(
            single_layer_changes.measure(
                problem.model, changes, x, lambda y, y0, _: losses.kl(y, y0)
            )
        )

    return Cost(*price(problem, bits, input_bits, one), unit="kl")
