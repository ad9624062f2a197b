"""Integer linear programme: the bits of least cost within bounds on size, BOPs and latency."""

from __future__ import annotations

from sq.allocation import latency_table as tables
from sq.allocation.candidates import Joint, Rules, Ties
from sq.allocation.integer_program import Effort
from sq.allocation.program_setup import build_problem, decide
from sq.config.constraints import NotNegative, Positive, Whole
from sq.errors import SqError
from sq.types.costs import Budget, Cost, Widths
from sq.types.problem import Layer


def allocate(  # noqa: PLR0913 (knobs, each a line of YAML)
    cost: Cost,
    layers: list[Layer],
    budget: Budget,
    *,
    average_bits: Positive | None,
    average_input_bits: Positive | None,
    bytes: Positive | None,
    bops: Positive | None,
    latency: Positive | None,
    latency_table: str | None,
    ties: Ties,
    inputs: Joint,
    products: Whole,
    steps: Whole,
    gap: NotNegative,
    time_limit: Positive | None,
) -> Widths:
    """Minimise the costs of all layers, plus half of the costs of pairs if any, within all bounds.

    Each layer takes one of the bit-widths that it has a sensitivity of. If inputs have
    sensitivities as well, weights and inputs are chosen together, since BOPs and latency are not
    sums over the two. Of choices with equal cost the smallest is taken.

    Parameters
    ----------
    budget : fixed bits, bits of inputs that are not chosen, and resources that do not depend on the
        choice; all of them count
    average_bits : upper bound of the mean bits of a weight
    average_input_bits : upper bound of the mean bits of a layer's input
    bytes, bops, latency : upper bounds for the network, see `sq/allocation/program_setup.py`;
        latency in ms by `latency_table`
    latency_table : CSV file with the columns layer, bits, input_bits and ms
    ties, inputs : see `sq.allocation.candidates.Rules`
    products, steps : see `sq.allocation.integer_program.Effort`; without effect unless the metric
        has costs of pairs
    gap, time_limit : when the search may stop: a share of the cost, seconds

    Raises
    ------
    SqError : a bound cannot be kept, or average bits are beyond the candidates (the message has the
        range); there is no bound; a layer or width has no sensitivity, or no line in the table

    Source
    ------
    Yao et al. 2021 (HAWQ-V3), arXiv:2011.10680, section 3.4: the programme, its bounds and the
    ties. Bytes as stored, separate bits of inputs, and costs of pairs are ours.
    """
    if average_input_bits is not None and not cost.inputs:
        raise SqError(
            f"allocation.average_input_bits={average_input_bits:g}: bits of inputs have no "
            "sensitivity; set sensitivity.input_bits, or null here"
        )
    if latency is not None and latency_table is None:
        raise SqError(
            f"allocation.latency={latency:g}: allocation.latency_table should name a CSV file of "
            "latencies"
        )
    table = None if latency_table is None else tables.read(latency_table)
    problem = build_problem(cost, layers, budget, Rules(ties, inputs, table))
    bounds = {
        "bits": average_bits,
        "input_bits": average_input_bits,
        "bytes": bytes,
        "bops": bops,
        "latency": latency,
    }
    limits = {name: bound for name, bound in bounds.items() if bound is not None}
    widths = decide(problem, limits, Effort(gap, time_limit, products, steps))
    if table is not None:
        widths.report["latency_table"] = {"file": table.file, "digest": table.digest}
    return widths
