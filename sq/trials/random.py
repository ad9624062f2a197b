"""Random trials: measure random bit assignments, and compare with their predicted costs."""

from __future__ import annotations

from typing import Any

import torch

from sq.config.constraints import Count
from sq.trials import rank_correlation
from sq.trials.measurement import Trial, losses
from sq.types.costs import Rows


def measure(trial: Trial, *, count: Count, images: Count, seed: int) -> dict[str, Any]:
    """Measure the loss of `count` random bit assignments, and its rank correlation with the cost.

    Each assignment has its own mix of bit-widths: shares drawn uniformly from all there are (a flat
    Dirichlet), then each layer's bits by these shares. So mean bits differ between assignments, and
    assignments of equal mean bits differ too.

    Parameters
    ----------
    count : number of assignments
    images : of the evaluation split that the loss is measured on, at most; see
        `sq.trials.measurement.losses`
    seed : of the assignments

    Returns
    -------
    report : `spearman` and `kendall` with their intervals (see `sq.trials.rank_correlation`), and
        `list`: of each assignment its `bits` and `input_bits` in the order of layers, the cost
        `predicted` (in units of the metric) and the loss `measured` (mean cross-entropy in nats);
        `loss_full` is that of full precision

    Raises
    ------
    SqError : see `sq.trials.measurement.losses`

    Source
    ------
    Lee et al. 2021, arXiv:2103.10051: our reading of how its metric was judged, of which the
    abstract says no more than that it "better represents" sensitivity.
    """
    cost = trial.cost
    weights = _draw(cost.weights, count, seed)
    # Another seed, so that a layer's inputs do not get the bits of its weights.
    inputs = _draw(cost.inputs, count, seed + 1) if cost.inputs else [{}] * count
    assignments = list(zip(weights, inputs, strict=True))
    result = losses(trial, assignments, images)
    predicted: list[float] = []
    measured: list[float] = []
    entries: list[dict[str, Any]] = []
    for (weight_bits, input_bits), (loss, _) in zip(assignments, result.assignments, strict=True):
        predicted.append(cost.of(weight_bits, input_bits))
        measured.append(loss)
        entries.append(
            {
                "bits": _line(weight_bits),
                "input_bits": _line(input_bits),
                "predicted": predicted[-1],
                "measured": loss,
            }
        )
    about = {
        "images": result.images,
        "loss_full": result.full[0],
        "cached": result.cached,
        "list": entries,
    }
    return rank_correlation.correlation(predicted, measured, seed) | about


def _draw(rows: Rows, count: int, seed: int) -> list[dict[str, int]]:
    """Return `count` assignments of bits to layers, each layer with one of its bit-widths."""
    generator = torch.Generator().manual_seed(seed)
    all_widths: set[int] = set()
    for row in rows.values():
        all_widths.update(row)
    widths = sorted(all_widths)
    assignments = []
    for _ in range(count):
        # Exponential numbers, once normalised, are a draw from a flat Dirichlet distribution.
        shares = torch.empty(len(widths), dtype=torch.float64).exponential_(generator=generator)
        bits: dict[str, int] = {}
        for name, row in rows.items():
            # 1.0 for the layer's own widths, 0.0 for others, which are never drawn
            allowed = torch.tensor([float(width in row) for width in widths])
            chosen = torch.multinomial(shares * allowed, 1, generator=generator)
            bits[name] = widths[int(chosen)]
        assignments.append(bits)
    return assignments


def _line(bits: dict[str, int]) -> str:
    return " ".join(str(width) for width in bits.values())
