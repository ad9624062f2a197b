"""The pipeline: what it refuses, and that the same config gives the same codes."""

import pytest
import torch
from cli_helpers import run
from torch import nn

from sq import pipeline, record
from sq.errors import SqError
from sq.types import Model, Split

MODEL = Model(nn.Flatten(), [], (1, 4, 4), "0" * 64)


def split(name, count=3, shape=(1, 4, 4)):
    return Split(
        torch.zeros(count, *shape), torch.zeros(count, dtype=torch.long), [f"{name}/{i}" for i in range(count)]
    )


def test_images_of_two_splits_pass():
    pipeline.check_images(MODEL, split("train"), split("test"))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("use", ["calibration", "evaluation"])
def test_broken_images_are_named(use, value):
    splits = {"calibration": split("train"), "evaluation": split("test")}
    splits[use].x[1, 0, 2, 2] = value
    with pytest.raises(SqError, match=rf"1 {use} images hold NaN or infinity \({splits[use].ids[1]}\)"):
        pipeline.check_images(MODEL, splits["calibration"], splits["evaluation"])


def test_many_broken_images_are_counted():
    batch = split("train", 10)
    batch.x[:] = float("nan")
    with pytest.raises(SqError, match=r"10 calibration images .*\(train/0, train/1, train/2\)"):
        pipeline.check_images(MODEL, batch, split("test"))


@pytest.mark.parametrize("shape", [(3, 4, 4), (1, 8, 8), (16,)])
def test_images_of_another_shape(shape):
    with pytest.raises(SqError, match=r"calibration images are .*, the network takes \(1, 4, 4\)"):
        pipeline.check_images(MODEL, split("train", shape=shape), split("test"))
    with pytest.raises(SqError, match="evaluation images are"):
        pipeline.check_images(MODEL, split("train"), split("test", shape=shape))


def test_overlap_of_calibration_and_evaluation():
    test = split("test", 5)
    test.ids[3] = "train/1"
    with pytest.raises(SqError, match=r"1 images are used both to calibrate and to evaluate \(train/1\)"):
        pipeline.check_images(MODEL, split("train"), test)
    with pytest.raises(SqError, match="3 images are used both"):
        pipeline.check_images(MODEL, split("train"), split("train"))


@pytest.mark.parametrize("batch_size", [1, 2, 5, 100])
def test_prediction_does_not_depend_on_the_batch_size(batch_size):
    x = torch.arange(80.0).reshape(5, 1, 4, 4)
    outputs = pipeline.predict(nn.Flatten(), x, batch_size)
    assert torch.equal(outputs, x.flatten(1))
    assert not outputs.requires_grad


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_network_with_broken_weights(value):
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 2))
    with torch.no_grad():
        net[1].weight[0, 0] = value
    with pytest.raises(SqError, match="outputs hold NaN or infinity"):
        pipeline.predict(net, torch.ones(2, 1, 4, 4), 2)


def found(folder):
    return {r["config"]["seed"]: r for r in record.read_all(folder / "results" / "runs")}


def test_same_config_gives_the_same_codes_in_another_process(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    assert run(tmp_path / "a", "quantizer=sensiquant", "seed=0,1", sweep=True).returncode == 0
    assert run(tmp_path / "b", "quantizer=sensiquant").returncode == 0
    here, there = found(tmp_path / "a"), found(tmp_path / "b")[0]
    assert here[0]["key"] == there["key"]
    assert here[0]["statistics"] == there["statistics"]
    assert here[0]["results"]["codes"] == there["results"]["codes"]
    assert here[0]["calibration"] == there["calibration"]
    timeless = [{k: v for k, v in r["results"].items() if "seconds" not in k} for r in (here[0], there)]
    assert timeless[0] == timeless[1]
    assert here[1]["statistics"] != here[0]["statistics"]
    assert here[1]["calibration"]["ids"] != here[0]["calibration"]["ids"]
    assert here[1]["results"]["codes"] != here[0]["results"]["codes"]


def test_statistics_are_collected_once_for_all_methods(tmp_path):
    for quantizer in ("rtn", "obq"):
        assert run(tmp_path, f"quantizer={quantizer}", "bits=3", "sensitivity.bits=[3]").returncode == 0
    first, second = sorted(record.read_all(tmp_path / "results" / "runs"), key=lambda r: r["statistics_cached"])
    assert (first["statistics_cached"], second["statistics_cached"]) == (False, True)
    assert first["statistics"] == second["statistics"]
    assert second["seconds"]["statistics"] < 0.05 * sum(second["seconds"].values())
    assert not list(tmp_path.glob("**/*.part"))
