"""The pipeline: what it refuses, and that the same config gives the same codes."""

import io

import numpy as np
import pytest
import torch
from cli_helpers import call, records, run
from PIL import Image
from torch import nn

from sq.core import files
from sq.errors import SqError
from sq.evaluation import evaluate
from sq.records import record
from sq.tracker import run_page
from sq.types.images import Batch, Images
from sq.types.problem import Model


def prepare(image, resized):
    return torch.from_numpy(np.asarray(image, np.float32))[None]


MODEL = Model(nn.Flatten(), [], (1, 4, 4), "0" * 64, prepare)


def split(name, count=3, shape=(1, 4, 4)):
    return Batch(
        torch.zeros(count, *shape),
        torch.zeros(count, dtype=torch.long),
        [f"{name}/{i}" for i in range(count)],
    )


def test_images_that_fit_pass():
    evaluate.check_images(MODEL, split("train"), "calibration")
    evaluate.check_disjoint(split("train").ids, split("test").ids)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_broken_images_are_named(value):
    batch = split("train")
    batch.x[1, 0, 2, 2] = value
    with pytest.raises(SqError, match=r"^1 evaluation image with NaN or infinity \(train/1\)"):
        evaluate.check_images(MODEL, batch, "evaluation")


def test_many_broken_images_are_counted():
    batch = split("train", 10)
    batch.x[:] = float("nan")
    with pytest.raises(SqError, match=r"10 calibration images .*\(train/0, train/1, train/2\)"):
        evaluate.check_images(MODEL, batch, "calibration")


@pytest.mark.parametrize("shape", [(3, 4, 4), (1, 8, 8), (16,)])
def test_images_of_another_shape(shape):
    with pytest.raises(SqError, match=r"calibration images are .*, the network takes \(1, 4, 4\)"):
        evaluate.check_images(MODEL, split("train", shape=shape), "calibration")


def test_overlap_of_calibration_and_evaluation():
    test = split("test", 5).ids
    test[3] = "train/1"
    with pytest.raises(
        SqError, match=r"used both to calibrate and to evaluate: 1 image \(train/1\)"
    ):
        evaluate.check_disjoint(split("train").ids, test)
    with pytest.raises(SqError, match="used both to calibrate and to evaluate: 3 images"):
        evaluate.check_disjoint(split("train").ids, split("train").ids)


def passed(net, count, batch_size, **more):
    """Return the outputs and the batches of one pass of `net` over `count` grey images of levels 0, 1, ..."""

    def metric(model, seen):
        return list(seen)

    pixels = [Image.new("L", (4, 4), level) for level in range(count)]
    images = Images(
        [f"i/{n}" for n in range(count)], torch.arange(count), pixels.__getitem__, **more
    )
    over = evaluate.NetworkEvaluator(MODEL, metric, images, batch_size, torch.device("cpu"))
    return over, over.measure(net)


@pytest.mark.parametrize("batch_size", [1, 2, 5, 100, None])
def test_outputs_do_not_depend_on_the_batch_size(batch_size):
    over, seen = passed(nn.Flatten(), 5, batch_size)
    outputs = torch.cat([o for o, _ in seen])
    assert torch.equal(outputs, torch.arange(5.0).view(5, 1).expand(5, 16))
    assert torch.cat([b.y for _, b in seen]).tolist() == [0, 1, 2, 3, 4]
    assert [name for _, b in seen for name in b.ids] == [f"i/{n}" for n in range(5)]
    assert not outputs.requires_grad
    assert over.left_out == []


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_network_with_broken_weights(value):
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 2))
    with torch.no_grad():
        net[1].weight[0, 0] = value
    with pytest.raises(SqError, match="outputs hold NaN or infinity"):
        passed(net, 2, 2)


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
    timeless = [
        {k: v for k, v in r["results"].items() if "seconds" not in k} for r in (here[0], there)
    ]
    assert timeless[0] == timeless[1]
    assert here[1]["statistics"] != here[0]["statistics"]
    assert here[1]["calibration"]["ids"] != here[0]["calibration"]["ids"]
    assert here[1]["results"]["codes"] != here[0]["results"]["codes"]


def test_statistics_are_collected_once_for_all_methods(tmp_path):
    for quantizer in ("rtn", "obq"):
        assert (
            run(tmp_path, f"quantizer={quantizer}", "bits=3", "sensitivity.bits=[3]").returncode
            == 0
        )
    first, second = sorted(
        record.read_all(tmp_path / "results" / "runs"), key=lambda r: r["statistics_cached"]
    )
    assert (first["statistics_cached"], second["statistics_cached"]) == (False, True)
    assert first["statistics"] == second["statistics"]
    assert second["seconds"]["statistics"] < 0.05 * sum(second["seconds"].values())
    assert not list(tmp_path.glob("**/*.part"))


MADE = ("calibration=generated", "calibration.images=10", "calibration.search.steps=25")


def test_generated_images_leave_their_figures_and_a_picture(tmp_path):
    assert call(tmp_path, *MADE, "bits=3,4", sweep=True).returncode == 0
    found = records(tmp_path)
    assert sorted(own["calibration"]["made"]["cached"] for own in found) == [False, True], (
        "made once"
    )
    assert len({own["calibration"]["made"]["digest"] for own in found}) == 1
    for own in found:
        assert {"seconds", "steps", "loss", "confidence", "agreement"} <= own["calibration"][
            "made"
        ].keys()
        assert own["calibration"]["images"] == 10
        file = tmp_path / "outputs" / "runs" / f"{own['key']}.images.png"
        # 4 columns and 3 rows of 96 pixels, and white around each.
        assert Image.open(io.BytesIO(file.read_bytes())).size == (404, 304)
        assert file.with_name(f"{own['key']}.log").is_file()
        page = run_page.run(own)
        assert page.pictures == {"images": file.read_bytes()}
        assert run_page.run(own).pictures == page.pictures
        file.unlink()
        assert run_page.run(own).pictures == {}, "what is not here is not shown"


def test_drawn_images_leave_no_picture(tmp_path):
    assert call(tmp_path).returncode == 0
    (own,) = records(tmp_path)
    assert "made" not in own["calibration"]
    assert run_page.run(own).pictures == {}
    assert not list((tmp_path / "outputs").rglob("*.png"))


def test_a_picture_that_cannot_be_written_costs_no_run(tmp_path, monkeypatch):
    def refuse(file, *rest):
        raise SqError(f"cannot write {file}")

    write = files.write_bytes
    monkeypatch.setattr(
        files, "write_bytes", lambda f, *rest: (refuse if f.suffix == ".png" else write)(f, *rest)
    )
    assert call(tmp_path, *MADE).returncode == 0
    (own,) = records(tmp_path)
    assert own["status"] == "done"
    assert "cannot write" in (tmp_path / "outputs" / "runs" / f"{own['key']}.log").read_text()


@pytest.mark.parametrize("choice", ["generated", "bn_matched"])
def test_unlabelled_and_generated_images_serve_every_part(tmp_path, choice):
    words = [
        f"calibration={choice}",
        "calibration.images=8",
        "calibration.search.steps=25",
        "activation=minmax",
    ]
    words += ["quantizer=sensiquant", "calibration.inputs=quantized"]
    for correction in ("bias", "reestimate", "batchnorm"):
        done = call(tmp_path, *words, f"correction={correction}")
        assert done.returncode == 0, done.stderr
