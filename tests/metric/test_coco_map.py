"""mAP of a made-up detector whose raw outputs are boxes and scores."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from tolerances import relative
from torch import nn

from sq.config.instantiate import build
from sq.errors import SqError
from sq.evaluation.detection import bootstrap_map
from sq.metric.coco_map import measure
from sq.types.images import Batch, Objects
from sq.types.problem import Model

SIDE, CLASSES = 64, 3
KNOBS = {"confidence": 0.001, "iou": 0.6, "limit": 300, "evaluator": "faster", "resamples": 40}
CONF = Path(__file__).resolve().parents[2] / "conf"


def decode(raw):
    return raw[..., :4], raw[..., 4:]


MODEL = Model(nn.Identity(), [], (3, SIDE, SIDE), "", lambda image, resized: None, decode=decode)


def scene(seed, images=9, crowds=0.1):
    """Objects in images of two sizes; every fourth image has none."""
    random, found = torch.Generator().manual_seed(seed), []
    for i in range(images):
        height, width = (100, 200) if i % 2 else (128, 96)
        n = 0 if i % 4 == 3 else 5
        corner = torch.rand(n, 2, generator=random) * torch.tensor([width, height]) * 0.6
        boxes = torch.cat((corner, corner + 12 + 20 * torch.rand(n, 2, generator=random)), dim=1)
        kinds = torch.randint(CLASSES, (n,), generator=random)
        found.append(
            Objects(boxes, kinds, torch.rand(n, generator=random) < crowds, (height, width))
        )
    return found


def outputs(objects, seed=0, noise=0.0, rows=12):
    """Raw outputs (B, rows, 4 + classes): the objects where the network sees them, jittered, among empty rows."""
    random = torch.Generator().manual_seed(seed)
    raw = torch.zeros(len(objects), rows, 4 + CLASSES)
    for own, true in zip(raw, objects, strict=True):
        height, width = true.size
        scale = SIDE / max(height, width)
        # Sizes here give whole margins, so there is one way only to centre the image.
        margin = torch.tensor([(SIDE - width * scale) / 2, (SIDE - height * scale) / 2]).repeat(2)
        n = len(true.boxes)
        own[:n, :4] = true.boxes * scale + margin + noise * torch.randn(n, 4, generator=random)
        own[torch.arange(n), 4 + true.classes] = 0.3 + 0.6 * torch.rand(n, generator=random)
    return raw


def seen(raw, objects, size=4):
    for i in range(0, len(objects), size):
        own = objects[i : i + size]
        ids = [f"image {i + j}" for j in range(len(own))]
        yield raw[i : i + size], Batch(torch.zeros(len(own), 3, SIDE, SIDE), own, ids)


def measured(raw, objects, **knobs):
    return measure(MODEL, seen(raw, objects), **KNOBS | knobs)


def test_all_objects_found():
    objects = scene(0, crowds=0)
    result = measured(outputs(objects), objects)
    assert list(result.figures) == ["map", "map50"]
    assert result.figures == pytest.approx({"map": 1, "map50": 1})
    for own, true in zip(result.detections, objects, strict=True):
        order = true.boxes[:, 0].argsort()
        torch.testing.assert_close(
            own.boxes[own.boxes[:, 0].argsort()], true.boxes[order], atol=1e-3, rtol=0
        )


def test_batches_do_not_matter():
    objects = scene(1, images=20)
    raw = outputs(objects, noise=1.5)
    whole = measure(MODEL, seen(raw, objects, 20), **KNOBS)
    parts = measure(MODEL, seen(raw, objects, 3), **KNOBS)
    assert whole.figures == parts.figures
    assert torch.equal(whole.raw, parts.raw)
    assert torch.equal(whole.raw, raw[:8])


@pytest.mark.parametrize("seed", range(3))
def test_evaluators_and_our_own_count_agree(seed):
    objects = scene(seed)
    raw = outputs(objects, noise=1.5)
    fast, slow = (measured(raw, objects, evaluator=e) for e in ("faster", "pycocotools"))
    assert 0.1 < slow.figures["map"] < slow.figures["map50"] <= 1
    assert fast.figures == pytest.approx(slow.figures, abs=relative(10 * 101 * 80, torch.float64))
    matches = bootstrap_map.match(slow.detections, objects, CLASSES)
    assert bootstrap_map.mean_average_precision(matches, np.ones(9, dtype=int)) == pytest.approx(
        slow.figures["map"]
    )


def test_against_itself():
    objects = scene(2)
    result = measured(outputs(objects, noise=1), objects)
    compared = result.against(result)
    assert (compared["drop"], compared["drop_low"], compared["drop_high"]) == (0, 0, 0)
    assert compared["logit_snr_db"] == 300
    assert compared["boxes"] == compared["boxes_full"] == sum(len(o.boxes) for o in objects) / 9


def test_against_full_precision():
    objects = scene(3, images=30)
    raw = outputs(objects, noise=0.4)
    worse = raw.clone()
    worse[..., :4] += 2 * torch.randn(
        worse[..., :4].shape, generator=torch.Generator().manual_seed(1)
    )
    worse[::3, :, 4:] *= 0.2
    full, own = (measured(r, objects, resamples=200) for r in (raw, worse))
    compared = own.against(full)
    assert list(compared) == [
        "drop",
        "drop_low",
        "drop_high",
        "logit_snr_db",
        "boxes",
        "boxes_full",
    ]
    assert compared["drop"] == full.figures["map"] - own.figures["map"]
    assert 0 < compared["drop_low"] < compared["drop"] < compared["drop_high"] < 1
    ratio = raw[:8].double().square().sum() / (raw[:8] - worse[:8]).double().square().sum()
    assert compared["logit_snr_db"] == pytest.approx(10 * float(ratio.log10()))
    assert compared["boxes"] < compared["boxes_full"]
    assert own.against(full) == compared


@pytest.mark.one_arithmetic("statistical: a spread between images, far above rounding")
def test_interval_covers_the_spread_between_other_images():
    # Drops on fresh sets of images spread about as far as the interval of one set says.
    drops, widths = [], []
    for seed in range(30):
        objects = scene(100 + seed, images=24)
        full = measured(outputs(objects, seed, noise=0.4), objects, resamples=100)
        own = measured(outputs(objects, seed + 1, noise=1.2), objects, resamples=100)
        compared = own.against(full)
        drops.append(compared["drop"])
        widths.append(compared["drop_high"] - compared["drop_low"])
    assert 0.6 < np.mean(widths) / (2 * 1.96 * np.std(drops)) < 1.6


def test_no_detections():
    objects = scene(0)
    raw = outputs(objects)
    result = measured(torch.zeros_like(raw), objects)
    assert result.figures == {"map": 0, "map50": 0}
    compared = result.against(measured(raw, objects))
    assert compared["drop_low"] > 0
    assert (compared["boxes"], compared["logit_snr_db"]) == (0, 0)
    assert measured(raw, objects).against(result)["logit_snr_db"] == -300  # nothing to compare with


def test_outputs_that_are_not_finite():
    objects = scene(0)
    raw = outputs(objects)
    broken = measured(raw * torch.nan, objects)
    assert broken.figures["map"] == 0
    assert broken.against(measured(raw, objects))["logit_snr_db"] == -300


def test_limit_bounds_the_boxes_of_an_image():
    objects = scene(0)
    result = measured(outputs(objects), objects, limit=2)
    assert max(len(own.boxes) for own in result.detections) == 2


def test_images_without_any_object():
    objects = [o for o in scene(0) if not len(o.boxes)]
    with pytest.raises(SqError, match="none of the 2 images holds an object"):
        measured(outputs(objects), objects)


def test_object_of_a_class_that_the_network_does_not_know():
    objects = scene(0)
    raw = outputs(objects)
    objects[4] = replace(objects[4], classes=objects[4].classes + CLASSES)
    with pytest.raises(
        SqError, match=r"image 4 holds an object of class [345], the network knows 0 to 2"
    ):
        measured(raw, objects)


def test_model_or_data_of_another_task():
    objects = scene(0)
    with pytest.raises(
        SqError, match=r"the model is no detector: choose a detector, or metric=top1"
    ):
        measure(replace(MODEL, decode=None), seen(outputs(objects), objects), **KNOBS)
    labels = [(torch.zeros(1, 10), Batch(torch.zeros(1, 3, 8, 8), torch.tensor([1]), ["a"]))]
    with pytest.raises(SqError, match=r"the dataset has one label an image: .*dataset=coco"):
        measure(MODEL, labels, **KNOBS)


@pytest.mark.parametrize(
    ("evaluator", "module", "name"),
    [
        ("faster", "faster_coco_eval", "faster-coco-eval"),
        ("pycocotools", "pycocotools.coco", "pycocotools"),
    ],
)
def test_evaluator_that_is_not_installed_is_known_before_the_images_are_run(
    monkeypatch, evaluator, module, name
):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(
        SqError,
        match=rf"metric\.evaluator={evaluator} needs {name} .*: python -m pip install {name}$",
    ):
        measure(
            MODEL,
            iter(lambda: pytest.fail("an image was run"), None),
            **KNOBS | {"evaluator": evaluator},
        )


def test_other_images_cannot_be_compared():
    objects = scene(0)
    raw = outputs(objects)
    with pytest.raises(ValueError, match="on other images"):
        measured(raw, objects).against(measured(raw[:4], objects[:4]))


def test_config_fits():
    knobs = OmegaConf.to_container(OmegaConf.load(CONF / "metric" / "coco_map.yaml"))
    objects = scene(0, crowds=0)
    result = build(knobs, "metric")(MODEL, seen(outputs(objects), objects))
    assert result.figures["map"] == pytest.approx(1)
    assert result.resamples == 500
