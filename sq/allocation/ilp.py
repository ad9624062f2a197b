"""Integer linear programme: the bits of least cost within bounds on size, BOPs and latency, any of them together."""

from __future__ import annotations

from sq.allocation import latency_table as tables
from sq.allocation.candidates import Joint, Rules, Ties
from sq.allocation.integer_program import Effort
from sq.allocation.program_setup import decide, mix
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
    """Minimise the sum of costs over layers (and half of the costs of pairs, where there are any) within all bounds.

    Each layer takes one of the widths that it is priced at; where inputs are priced as well,
    weights and inputs are chosen together, since BOPs and latency are no sums of the two. Of
    choices that cost the same it is the smallest.

    Parameters
    ----------
    budget : bits that are settled, of inputs that have no price, and what no decision changes; all
    take part
    average_bits : mean bits of a weight, at most
    average_input_bits : mean bits of a layer's input, at most
    bytes, bops, latency : of the network, at most: see `sq/allocation/program_setup.py`; latency in
    ms by
        `latency_table`
    latency_table : CSV file with the columns layer, bits, input_bits and ms
    ties, inputs : see `sq.allocation.candidates.Rules`
    products, steps : see `sq.allocation.integer_program.Effort`; of no effect unless the metric
    prices pairs
    gap, time_limit : where the search may stop: a share of the cost, seconds

    Raises
    ------
    SqError : bounds that cannot be kept to, or average bits beyond the candidates, with the range
    that can be reached;
        no bound; a layer or width without a price, or missing in the table

    Source
    ------
    Yao et al. 2021 (HAWQ-V3), arXiv:2011.10680, section 3.4: the programme, its bounds and the
    ties. Bytes as stored, inputs with bits of their own, and costs of pairs are ours.
    """
    limits = {
        "bits": average_bits,
        "input_bits": average_input_bits,
        "bytes": bytes,
        "bops": bops,
        "latency": latency,
    }
    if average_input_bits is not None and not cost.inputs:
        raise SqError(
            f"allocation.average_input_bits={average_input_bits:g}: bits of inputs have no price; "
            "set sensitivity.input_bits, or null here"
        )
    if latency is not None and latency_table is None:
        raise SqError(
            f"allocation.latency={latency:g}: allocation.latency_table should name a CSV file of latencies"
        )
    table = None if latency_table is None else tables.read(latency_table)
    mixture = mix(cost, layers, budget, Rules(ties, inputs, table))
    given = {name: limit for name, limit in limits.items() if limit is not None}
    made = decide(mixture, given, Effort(gap, time_limit, products, steps))
    if table is not None:
        made.report["latency_table"] = {"file": table.file, "digest": table.digest}
    return made
