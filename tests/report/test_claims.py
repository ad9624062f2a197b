"""Published figures beside our own: only where settings and full precision agree."""

from pathlib import Path

import pytest
import yaml

from sq.errors import SqError
from sq.report import claims

ROOT = Path(__file__).parents[2]
GROUP = {
    "source": "Paper, table 1",
    "evidence": "SRC",
    "setting": "all layers",
    "when": {"image_set": "imagenet", "activation": "none", "grid.symmetric": False, "ends": "all"},
    "full": {"resnet18": 69.76},
    "figures": [
        {"model": "resnet18", "quantizer": "obq", "bits": 4, "top1": 69.5},
        {"model": "resnet18", "quantizer": "obq", "bits": 3, "top1": 68.5},
    ],
}


def written(folder, *groups):
    (folder / "claims.yaml").write_text(yaml.safe_dump(list(groups)))
    return claims.read(folder)


def record(*, top1=69.3, full=69.75, seed=0, status="done", image_set="imagenet", **changes):
    config = {
        "bits": 4.0,
        "seed": seed,
        "ends": "all",
        "grid": {"symmetric": False, "range": "mse"},
        "activation": {},
    }
    choices = {"model": "resnet18", "quantizer": "obq", "activation": "none"}
    for name, value in changes.items():
        (choices if name in choices else config)[name] = value
    results = {"top1": top1, "top1_full": full, "drop": full - top1}
    return {
        "status": status,
        "config": config,
        "choices": choices,
        "image_set": image_set,
        "results": results,
    }


def test_claim_stands_beside_the_mean_of_seeds(tmp_path):
    made = claims.table([record(), record(top1=69.1, seed=1)], written(tmp_path, GROUP))
    assert len(made) == 1
    row = made.iloc[0]
    assert (row["claimed"], row["measured"], row["gap"], row["runs"]) == (
        "69.50",
        "69.20",
        "-0.30",
        "2",
    )
    assert (row["source"], row["model"], row["method"], row["bits"]) == (
        "Paper, table 1",
        "resnet18",
        "obq",
        "4",
    )


@pytest.mark.parametrize(
    "changes",
    [
        {"image_set": "imagenet_sample"},
        {"full": 71.0},
        {"ends": "8bit"},
        {"bits": 2.0},
        {"quantizer": "gptq"},
        {"model": "resnet50"},
        {"activation": "mse"},
        {"grid": {"symmetric": True}},
        {"grid": {}},
        {"status": "failed"},
    ],
    ids=str,
)
def test_other_settings_are_not_compared(tmp_path, changes):
    assert claims.table([record(**changes)], written(tmp_path, GROUP)).empty


def detected(*, map_full, **changes):
    made = record(image_set="coco", **changes)
    made["results"] = {
        "headline": "map",
        "map": map_full - 0.004,
        "map_full": map_full,
        "drop": 0.004,
    }
    return made


def test_maps_are_held_to_a_baseline_of_their_own_size(tmp_path):
    group = GROUP | {
        "when": {"image_set": "coco"},
        "full": {"resnet18": 0.374},
        "figures": [
            {"model": "resnet18", "quantizer": "obq", "bits": 4, "map": 0.37},
            {"model": "resnet18", "quantizer": "obq", "bits": 4, "drop": 0.003},
            {"model": "resnet18", "quantizer": "obq", "bits": 4, "top1": 70.0},
        ],
    }
    made = claims.table([detected(map_full=0.373)], written(tmp_path, group))
    assert [*made["measured"]] == ["0.3690", "0.0040"]
    assert [*made["gap"]] == ["-0.0010", "+0.0010"]
    assert claims.table([detected(map_full=0.368)], written(tmp_path, group)).empty


@pytest.mark.parametrize(("seconds", "gap"), [(0.1, "within"), (1.0, "-10.0"), (0.01, "+800.0")])
def test_a_speedup_needs_obqs_runs_and_may_be_a_range(seconds, gap, tmp_path):
    figure = {"model": "resnet18", "quantizer": "sensiquant", "bits": 4, "speedup": [20, 200]}
    found = written(tmp_path, GROUP | {"figures": [figure]})

    def timed(quantizer, seconds, machine="here"):
        made = record(quantizer=quantizer)
        made["results"]["solve_seconds"] = seconds
        made["config"]["allocation"] = {}
        return made | {"statistics": "same", "provenance": {"machine": machine}}

    fast = timed("sensiquant", seconds)
    assert claims.table([fast, timed("obq", 10.0, "elsewhere")], found).empty
    (row,) = claims.table([fast, timed("obq", 10.0)], found).to_dict("records")
    assert (row["claimed"], row["gap"]) == ("20.0 to 200.0", gap)
    assert float(row["measured"]) == pytest.approx(10.0 / seconds)


def test_the_seed_papers_headline_stands_there():
    own = [c for c in claims.read(ROOT / "results") if "2509.05576" in c["source"]]
    assert {(c["when"]["model"], c["name"], str(c["value"])) for c in own} == {
        ("resnet50", "drop", "0.3"),
        ("resnet50", "speedup", "[20, 200]"),
        ("yolov5s", "drop", "0.003"),
        ("yolov5s", "speedup", "[20, 200]"),
    }


def test_no_file_no_claims(tmp_path):
    assert claims.read(tmp_path) == []


@pytest.mark.parametrize(
    "change", [{"full": {}}, {"wen": {}}, {"figures": [{"model": "resnet18", "bits": 4}]}]
)
def test_file_laid_out_otherwise_is_named(tmp_path, change):
    with pytest.raises(SqError, match=r"claims\.yaml is not a list of claims") as caught:
        written(tmp_path, GROUP | change)
    assert "\n" not in str(caught.value)


def test_committed_claims_have_what_makes_them_comparable():
    found = claims.read(ROOT / "results")
    assert len(found) > 100
    for claim in found:
        assert claim["evidence"] in ("SRC", "CODE", "NOTE", "ISSUE", "MEM")
        assert {"image_set", "model", "quantizer", "bits"} <= set(claim["when"])
        assert (
            60 < claim["full"] < 85
            if claim["when"]["image_set"] == "imagenet"
            else 0.2 < claim["full"] < 0.6
        )
        assert claim["name"] in ("drop", "speedup") or claim["value"] < claim["full"] + 0.5
    for model in {claim["when"]["model"] for claim in found}:
        one = {
            c["full"]
            for c in found
            if c["when"]["model"] == model and c["source"].startswith("OBC (")
        }
        assert len(one) <= 1
