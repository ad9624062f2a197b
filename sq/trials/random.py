"""Random bits: what networks of many bit assignments lose, beside what the sensitivity metric said they would."""

from __future__ import annotations

from typing import Any

import torch

from sq.config.constraints import Count
from sq.trials import rank_correlation
from sq.trials.measurement import Trial, losses
from sq.types.costs import Rows


def measure(trial: Trial, *, count: Count, images: Count, seed: int) -> dict[str, Any]:
    """Measure the loss of `count` random bit assignments, and how well their prices put them in order.

    Each assignment has a mix of bit-widths of its own: shares drawn uniformly from all there are (a
    flat Dirichlet), then each layer's bits by these shares. So their means lie apart, and so do
    assignments of one mean.

    Parameters
    ----------
    count : assignments
    images : of the evaluation split that the loss is measured on, at most; see
    `sq.trials.measurement.losses`
    seed : of the assignments

    Returns
    -------
    `spearman` and `kendall` with their intervals (see `sq.trials.rank_correlation`), and `list`: of
    each assignment its `bits` and `input_bits` in the order of layers, the cost `predicted` (in
    units of the metric) and the loss `measured` (mean cross-entropy in nats); `loss_full` is that
    of full precision

    Raises
    ------
    SqError : see `sq.trials.measurement.losses`

    Source
    ------
    Lee et al. 2021, arXiv:2103.10051: our reading of how its metric was judged, of which the
    abstract says no more than that it "better represents" sensitivity.
    """
    cost = trial.cost
    inputs = _draw(cost.inputs, count, seed + 1) if cost.inputs else [{}] * count
    mixes = list(zip(_draw(cost.weights, count, seed), inputs, strict=True))
    found = losses(trial, mixes, images)
    predicted = [cost.of(*mix) for mix in mixes]
    measured = [loss for loss, _ in found.mixes]
    listed = [
        {"bits": _line(weights), "input_bits": _line(inputs), "predicted": p, "measured": m}
        for (weights, inputs), p, m in zip(mixes, predicted, measured, strict=True)
    ]
    about = {
        "images": found.images,
        "loss_full": found.full[0],
        "cached": found.cached,
        "list": listed,
    }
    return rank_correlation.correlation(predicted, measured, seed) | about


def _draw(rows: Rows, count: int, seed: int) -> list[dict[str, int]]:
    """Return `count` assignments of one of its bit-widths to each layer."""
    generator = torch.Generator().manual_seed(seed)
    widths = sorted({bits for row in rows.values() for bits in row})
    made = []
    for _ in range(count):
        shares = torch.empty(len(widths), dtype=torch.float64).exponential_(generator=generator)
        bits = {}
        for name, row in rows.items():
            own = shares * torch.tensor([float(width in row) for width in widths])
            bits[name] = widths[int(torch.multinomial(own, 1, generator=generator))]
        made.append(bits)
    return made


def _line(bits: dict[str, int]) -> str:
    return " ".join(str(width) for width in bits.values())
