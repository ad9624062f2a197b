"""Settings: what makes no sense is named before anything is loaded; experiments are what their headers say."""

import functools
import json
import re
from pathlib import Path

import pytest
from cli_helpers import CONF, EXPERIMENTS, compose
from omegaconf import OmegaConf

from sq.config import instantiate
from sq.config.schema import FAMILIES, Config, check, leaves, nearest, problems
from sq.errors import SqError
from sq.records import record
from sq.records.experiments import header
from sq.runs import status

GOOD = compose()[0]


def wrong(**changes):
    return problems({**GOOD, **changes})


def test_default_makes_sense():
    assert problems(GOOD) == []
    check(GOOD)


def test_schema_and_yaml_name_the_same_settings():
    own = OmegaConf.load(CONF / "config.yaml")
    settings = [name for name in own if name not in ("defaults", "hydra")]
    assert [*settings, *FAMILIES] == list(Config.__dataclass_fields__)
    assert set(GOOD) == set(Config.__dataclass_fields__)


@pytest.mark.parametrize("bits", [1, 1.5, 2, 3.5, 16])
def test_bits_that_make_sense(bits):
    assert wrong(bits=bits) == []


@pytest.mark.parametrize("bits", [0, 0.99, -1, 16.5, 33])
def test_bits_that_do_not(bits):
    (found,) = wrong(bits=bits)
    assert found.startswith(f"bits={bits:g}: allowed are 1 to 16")


@pytest.mark.parametrize("bits", [float("nan"), float("inf")])
def test_numbers_that_are_none(bits):
    assert wrong(bits=bits) == [f"bits={bits}: should be a finite number"]


@pytest.mark.parametrize(("bits", "senseless"), [(1, True), (1.5, True), (2, False)])
def test_symmetric_grid_needs_two_bits(bits, senseless):
    found = wrong(bits=bits, grid={**GOOD["grid"], "symmetric": True})
    assert bool(found) == senseless
    assert all("grid.symmetric=true" in line for line in found)


@pytest.mark.parametrize(
    ("changes", "start"),
    [
        ({"batch_size": 0}, "batch_size=0"),
        ({"batch_size": -1}, "batch_size=-1"),
        ({"workers": -1}, "workers=-1: at least 0, or null"),
        ({"ends": "8bits"}, "ends=8bits: nearest: 8bit"),
        ({"ends": "first"}, "ends=first: choices: 8bit, all, keep"),
        ({"threads": 0}, "threads=0"),
        ({"threads": -2}, "threads=-2"),
        ({"name": ""}, "name=''"),
        ({"name": "a/b"}, "name='a/b'"),
        ({"name": "a\\b"}, "name="),
        ({"name": "a=b"}, "name='a=b'"),
        ({"name": "a,b"}, "name='a,b'"),
        ({"name": "a b"}, "name='a b'"),
        ({"name": ".."}, "name='..'"),
        ({"name": ".hidden"}, "name='.hidden'"),
        ({"device": "gpu"}, "device=gpu"),
        ({"device": "cuda:"}, "device=cuda:"),
        ({"cache_gib": 0.0}, "cache_gib=0: above 0"),
        ({"cache_gib": -1.0}, "cache_gib=-1: above 0"),
        ({"cache": ""}, "cache='': a folder"),
        ({"positions": 0.0}, "positions=0: a share"),
        ({"positions": 1.5}, "positions=1.5: a share"),
        ({"typo": 1}, "typo: no such setting"),
        ({"bit": 3}, "bit: no such setting; nearest: bits"),
    ],
)
def test_senseless_setting_is_named(changes, start):
    (found,) = wrong(**changes)
    assert found.startswith(start)


@pytest.mark.parametrize(
    "changes",
    [
        {"threads": 1},
        {"threads": None},
        {"batch_size": 1},
        {"batch_size": None},
        {"workers": 0},
        {"workers": None},
        {"ends": "8bit"},
        {"ends": "keep"},
        {"fold": True},
        {"device": "cuda:1"},
        {"name": "a-b_c.1"},
        {"cache": None},
    ],
)
def test_sensible_setting(changes):
    assert wrong(**changes) == []


def test_inputs_of_the_quantized_network_take_all_positions():
    calibration = {**GOOD["calibration"], "inputs": "quantized"}
    assert wrong(calibration=calibration) == []
    (found,) = wrong(calibration=calibration, positions=0.5)
    assert found.startswith("positions<1 calibration.inputs=quantized: ")


def test_all_that_is_wrong_is_said_at_once():
    with pytest.raises(SqError, match=r"bits=0: .*; threads=0: .*; batch_size=0: "):
        check({**GOOD, "bits": 0, "batch_size": 0, "threads": 0})


def test_nearest():
    assert nearest("sensiqant", ["obq", "rtn", "sensiquant"]) == "nearest: sensiquant"
    assert nearest("zzz", ["rtn", "obq"]) == "choices: obq, rtn"
    assert nearest("bit", iter(["seed", "bits"])) == "nearest: bits"
    assert nearest("a", []) == "choices: "


def test_leaves():
    assert leaves({}) == {}
    assert leaves({"a": 1, "b": {"c": {"d": 2}, "e": [3, 4]}}) == {
        "a": 1,
        "b.c.d": 2,
        "b.e": [3, 4],
    }
    assert leaves({1: {2: 3}}) == {"1.2": 3}


@pytest.mark.parametrize(
    "words",
    ["bits=3 seed=7", "quantizer=obq quantizer.solve.outliers=false", "calibration.images=8"],
)
def test_overrides_arrive(words):
    flat = leaves(compose(*words.split())[0])
    for word in words.split():
        name, value = word.split("=")
        if name in flat:
            assert str(flat[name]).lower().removesuffix(".0") == value


def test_one_seed_serves_all():
    assert leaves(compose("seed=7")[0])["calibration.seed"] == 7
    assert leaves(compose("seed=7", "calibration.seed=1")[0])["calibration.seed"] == 1


# Experiments.

# Benchmarks (bench_*.yaml) are no sweeps; tests/bench checks them.
NAMES = sorted(
    file.stem for file in EXPERIMENTS.glob("*.yaml") if not file.stem.startswith("bench_")
)


@functools.cache
def expanded(name):
    """Return the jobs of an experiment."""
    return status.jobs_of(name, Path("results"))


def test_there_are_experiments():
    assert "quickstart" in NAMES


@pytest.mark.parametrize("name", NAMES)
def test_experiment_is_what_its_header_says(name):
    parts = header(EXPERIMENTS / f"{name}.yaml")
    assert {"Question", "Run", "Cost", "Expect", "Source"} <= set(parts)
    assert parts["Question"].endswith("?")
    assert parts["Run"].startswith(f"python run.py -cd experiments -cn {name}")
    assert len(expanded(name)) == int(re.match(r"(\d+) runs?\b", parts["Cost"])[1])


@pytest.mark.parametrize("name", NAMES)
def test_experiment_makes_sense(name):
    jobs = expanded(name)
    (own,) = {job.config["name"] for job in jobs}
    assert own == name or (own in NAMES and name.startswith(f"{own}_")), (
        "a second part goes beside the first"
    )
    assert [p for job in jobs for p in problems(job.config)] == []
    assert len({record.key(job.config) for job in jobs}) == len(jobs)
    seeds = {job.config["seed"] for job in jobs}
    assert len(seeds) >= 3 or "Seeds" in header(EXPERIMENTS / f"{name}.yaml"), (
        "fewer than 3, and no word on why"
    )
    for job in jobs:
        assert set(job.choices) == set(FAMILIES)
    for family in FAMILIES:
        parts = {json.dumps(job.config[family], sort_keys=True): job.config[family] for job in jobs}
        for part in parts.values():
            instantiate.check(part, family)


def test_sweeping_an_experiment_by_hand_gives_the_same_job():
    first, *_ = expanded("quickstart")
    config, choices = compose(
        "name=quickstart",
        "correction=none",
        *(w for w in first.overrides if not w.startswith("hydra.")),
    )
    assert config == first.config
    assert choices == first.choices


@pytest.mark.parametrize(
    ("words", "knob", "value"),
    [
        (["model=timm", "model.data.crop_pct=1.0"], "data", {"crop_pct": 1.0}),
        (["model=timm", "model.data={crop_pct: 1.0}"], "data", {"crop_pct": 1.0}),
        (
            ["model=timm", "model.expected={mine: {top1: 3, within: 1}}"],
            "expected",
            {"mine": {"top1": 3, "within": 1}},
        ),
        (["model=timm", "model.expected.mine=null"], "expected", {"mine": None}),
        (
            ["model=checkpoint", "model.arguments={num_classes: 10}"],
            "arguments",
            {"num_classes": 10},
        ),
        (["model=checkpoint", "model.arguments.num_classes=10"], "arguments", {"num_classes": 10}),
        (["model=resnet44", "model.expected.mine.top1=3"], "expected", {"mine": {"top1": 3}}),
    ],
)
def test_keys_that_are_the_users_are_set_as_any_other_setting(words, knob, value):
    assert compose(*words)[0]["model"][knob] == value


def test_data_of_a_checkpoint_keeps_what_is_not_set():
    data = compose("model=checkpoint")[0]["model"]["data"]
    assert compose("model=checkpoint", "model.data.crop_mode=squash")[0]["model"][
        "data"
    ] == data | {"crop_mode": "squash"}
