"""Learned quantizers on trained networks of other kinds than ours: a timm network, and a detector's raw predictions."""

import pytest
import torch
from cli_helpers import compose
from learned_problems import problem_of, quantizer

from sq.config.instantiate import build
from sq.network import batchnorm_folding

SIDE = 64  # of images: enough for every stride


def settled(name, folded):
    model = build(compose(f"model={name}")[0]["model"], "model")()
    x = torch.randn(16, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    if folded:
        batchnorm_folding.fold(model.net, x[:1])
    return problem_of(model, x, bits=4, activation_bits=8)


@pytest.mark.parametrize(("name", "folded"), [("efficientnet_lite0", True), ("yolov5n", False)])
def test_eptq_brings_outputs_closer_to_full_precision(name, folded, needs_data):
    given = settled(name, folded)
    x = given.batch.x
    with torch.no_grad():
        wanted = given.model.net(x)
        apart = []
        for steps in (0, 12):
            made = quantizer(
                "eptq", f"learn.iterations={steps}", "learn.batch=8", "attention=none"
            )(given)
            assert made.report["steps"] == steps
            apart.append(float((made.net(x) - wanted).square().mean() / wanted.square().mean()))
    assert apart[1] < 0.9 * apart[0]


def test_blocks_of_a_detector_are_learned_one_by_one(needs_data):
    made = quantizer("brecq", "learn.iterations=1", "then.iterations=1")(
        settled("yolov5n", folded=False)
    )
    assert made.report["steps"] == 2 * len(made.report["units"])
    assert {"model.24.m.0", "model.24.m.1", "model.24.m.2"} <= set(made.report["units"])
