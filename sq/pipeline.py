"""One run, from config to figures: the data flow of sq on one page."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from sq import cache, summary
from sq.build import build
from sq.clock import Clock
from sq.config import FAMILIES
from sq.errors import SqError
from sq.metric import agreement
from sq.types import Model, Problem, Split


def run(config: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    """Quantize the network that `config` names, measure it against full precision, return what was found.

    Raises
    ------
    SqError : what a user can fix, with the way out
    """
    part = {family: build(config[family], family) for family in FAMILIES if family != "tracker"}
    clock, size = Clock(device), config["batch_size"]
    with clock.phase("load"):
        model = _to(part["model"](), device)
        dataset = part["dataset"]()
    with clock.phase("calibrate"):
        batch = part["calibration"](model, dataset)
        check_images(model, batch, dataset.test)
        batch, test = (replace(s, x=s.x.to(device), y=s.y.to(device)) for s in (batch, dataset.test))
    with clock.phase("statistics"):
        kept = {"folder": config["cache"], "limit_gib": config["cache_gib"], "origin": config["model"]}
        how = {"batch_size": size, "positions": config["positions"], "seed": config["seed"]}
        collected, cached = cache.collect(model, batch, **kept, **how)
    problem = Problem(model, batch, collected, part["grid"])
    with clock.phase("sensitivity"):
        cost = part["sensitivity"](problem)
    with clock.phase("allocation"):
        bits = part["allocation"](cost, model.layers, config["bits"])
    with clock.phase("quantize"):
        quantized = part["quantizer"](replace(problem, bits=bits))
    with clock.phase("correct"):
        correction = part["correction"](quantized.net, model.net, batch)
    with clock.phase("evaluate"):
        outputs, reference = (predict(net, test.x, size) for net in (quantized.net, model.net))
        figures = part["metric"](outputs, reference, test.y) | agreement.measure(outputs, reference, test.y)
    found = summary.summarise(model, problem, quantized, bits)
    found["results"] = figures | found["results"]
    found["sensitivity"] = {name: {str(b): c for b, c in row.items()} for name, row in cost.items()}
    spent = {"statistics_cached": cached, "seconds": clock.seconds, "peak_bytes": clock.peak_bytes()}
    return found | {"correction": correction} | spent


def predict(net: nn.Module, x: Tensor, batch_size: int) -> Tensor:
    """Return the outputs of `net` for images `x` (B, C, H, W).

    Raises
    ------
    SqError : they hold NaN or infinity
    """
    with torch.no_grad():
        outputs = torch.cat([net(part) for part in x.split(batch_size)])
    if not torch.isfinite(outputs).all():
        raise SqError("the network's outputs hold NaN or infinity on the evaluation images: check the checkpoint")
    return outputs


def check_images(model: Model, batch: Split, test: Split) -> None:
    """Raise an `SqError` if images are not finite, of a wrong shape, or used to calibrate and to evaluate."""
    for split, use in ((batch, "calibration"), (test, "evaluation")):
        if tuple(split.x.shape[1:]) != model.input:
            raise SqError(f"{use} images are {tuple(split.x.shape[1:])}, the network takes {model.input}")
        finite = torch.isfinite(split.x).flatten(1).all(1)
        if not finite.all():
            bad = [split.ids[i] for i in (~finite).nonzero().flatten().tolist()]
            raise SqError(f"{len(bad)} {use} images hold NaN or infinity ({', '.join(bad[:3])}): repair or remove them")
    if shared := sorted(set(batch.ids) & set(test.ids)):
        raise SqError(
            f"{len(shared)} images are used both to calibrate and to evaluate ({', '.join(shared[:3])}): "
            "draw calibration images from the training split"
        )


def _to(model: Model, device: torch.device) -> Model:
    model.net.to(device)
    return model
