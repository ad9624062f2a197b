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
    config = {"bits": 4.0, "seed": seed, "ends": "all", "grid": {"symmetric": False, "range": "mse"}, "activation": {}}
    choices = {"model": "resnet18", "quantizer": "obq", "activation": "none"}
    for name, value in changes.items():
        (choices if name in choices else config)[name] = value
    results = {"top1": top1, "top1_full": full, "drop": full - top1}
    return {"status": status, "config": config, "choices": choices, "image_set": image_set, "results": results}


def test_claim_stands_beside_the_mean_of_seeds(tmp_path):
    made = claims.table([record(), record(top1=69.1, seed=1)], written(tmp_path, GROUP))
    assert len(made) == 1
    row = made.iloc[0]
    assert (row["claimed"], row["measured"], row["gap"], row["runs"]) == ("69.50", "69.20", "-0.30", "2")
    assert (row["source"], row["model"], row["method"], row["bits"]) == ("Paper, table 1", "resnet18", "obq", "4")


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


def test_no_file_no_claims(tmp_path):
    assert claims.read(tmp_path) == []


@pytest.mark.parametrize("change", [{"full": {}}, {"wen": {}}, {"figures": [{"model": "resnet18", "bits": 4}]}])
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
        assert 60 < claim["full"] < 85
        assert claim["name"] == "drop" or claim["value"] < claim["full"] + 0.5
    for model in {claim["when"]["model"] for claim in found}:
        one = {c["full"] for c in found if c["when"]["model"] == model and c["source"].startswith("OBC (")}
        assert len(one) <= 1
