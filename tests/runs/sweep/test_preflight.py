"""What is wrong with a sweep is one line, whatever the number of runs, and said before anything is done."""

import pytest
from cli_helpers import call, compose, error_line, settings, snapshot

from sq.config import requirements
from sq.runs.sweep import preflight
from sq.runs.sweep.expand import Job


def jobs(*points):
    """Return a job for each of some words, with settings that are not looked at."""
    return [Job(list(words), {}, {}) for words in points]


def test_distinct_runs_are_counted_and_what_all_share_is_told_once():
    every = jobs(["a=1", "c=0"], ["a=2", "c=0"], ["a=3", "c=0"])
    found = {"a=1: low": every[:1], "c=0: no such": every}
    line = preflight.describe(found, every, "make no sense")
    assert line == "3 of 3 runs make no sense: c=0: no such | a=1: low (a=1)"
    assert (
        preflight.describe({"x": every[:2]}, every, "lack it")
        == "2 of 3 runs lack it: x (2 runs: a=1; a=2)"
    )


def test_line_does_not_grow_with_the_sweep():
    every = jobs(*([f"a={a}", f"b={b}"] for a in range(50) for b in range(10)))
    found = {
        f"a={a}: high": [one for one in every if one.overrides[0] == f"a={a}"] for a in range(50)
    }
    line = preflight.describe(found, every, "make no sense")
    assert line.startswith(
        "500 of 500 runs make no sense: a=0: high (10 runs: a=0 b=0; a=0 b=1; a=0 b=2; ...) | "
    )
    assert line.endswith(" | and 45 more")
    assert len(line) < 500


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["bits=0,99", "ends=foo"],
            "2 of 2 runs make no sense: ends=foo: choices: 8bit, all, keep | bits=0: allowed",
        ),
        (["bits=4,3", "grid.range=mes"], "2 of 2 runs make no sense: grid.range=mes: should be"),
        (
            ["quantizer=rtn,gptq", "+quantizer.x=1"],
            "2 of 2 runs make no sense: quantizer.x: not a setting of",
        ),
    ],
)
def test_refusal_of_a_sweep(words, said, tmp_path):
    line = error_line(call(tmp_path, *words, sweep=True))
    assert line.startswith(f"sq: nothing was run; {said}")
    assert line.count(" not a setting of ") <= 1


@pytest.mark.parametrize(
    ("words", "fits"),
    [
        ([], True),
        (["model=yolov5n", "dataset=coco_sample"], True),
        (["model=yolov5n"], False),
        (["model=yolov8n", "dataset=imagenet"], False),
        (["model=resnet50", "dataset=coco"], False),
        (["model=yolov5n", "dataset=coco", "metric=top1"], False),
        (["metric=coco_map"], False),
    ],
)
def test_model_dataset_and_metric_are_of_one_kind(words, fits):
    config, choices = compose(*words)
    found = preflight.unfit([Job(words, config, choices)])
    assert (found == {}) is fits
    assert all("choose all of one kind" in fault for fault in found)


BARE = ["model=resnet20", "dataset=cifar10"]


# A single run that is no dry one looks for them itself.
@pytest.mark.parametrize(("sweep", "dry"), [(True, False), (True, True), (False, True)])
def test_data_that_is_not_here_is_said_before_anything_is_done(sweep, dry, tmp_path, monkeypatch):
    monkeypatch.delenv("SQ_DATA", raising=False)
    done = call(
        tmp_path, *BARE, *(["bits=4,3"] if sweep else []), f"sweep.dry_run={dry}", sweep=sweep
    )
    line = error_line(done)
    assert "runs lack what they need: model.weights=weights/cifar10_resnet20.pth: not in" in line
    assert " | dataset.root=cifar10: " in line
    assert snapshot(tmp_path / "results") == {}


def test_done_runs_need_nothing(tmp_path, monkeypatch):
    assert call(tmp_path, "bits=4", sweep=True).returncode == 0
    monkeypatch.setattr(requirements, "lacking", lambda configs: ["the moon"])
    assert call(tmp_path, "bits=4", sweep=True).returncode == 0
    assert "1 of 2 runs lack what they need: the moon (bits=3)" in error_line(
        call(tmp_path, "bits=4,3", sweep=True)
    )


def test_what_a_cluster_may_have_is_no_reason_to_refuse(tmp_path, monkeypatch):
    monkeypatch.delenv("SQ_DATA", raising=False)
    done = call(tmp_path, *BARE, "hydra/launcher=slurm", "sweep.dry_run=true", sweep=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith("seen from here 1 of 1 runs lack what they need: ")
    assert "1 run, 0 done, 1 to do" in done.stderr


def test_equal_parts_are_looked_at_once(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(
        requirements, "lacking", lambda configs: asked.extend(configs) or ["the moon"]
    )
    every = [
        Job([f"bits={bits}"], *compose(*settings(tmp_path), f"bits={bits}")) for bits in (2, 3, 4)
    ]
    assert preflight.lacking(every) == {"the moon": every}
    assert len(asked) == 1
