"""First and last layers: what each policy leaves out or widens, and what a run then records."""

import pytest
import torch
from cli_helpers import call, records
from torch import nn

from sq.errors import SqError
from sq.network import first_last, geometry, tracing
from sq.records import record
from sq.types.problem import Model

FIRST, LAST = "stem.0", "head"


def settled(*modules, named=()):
    net = nn.Sequential(*modules)
    found, skipped = geometry.find(net)
    return tracing.trace(Model(net, found, (4,), "", None, skipped, ends=named), torch.zeros(1, 4))


def four(named=()):
    return settled(*(nn.Linear(4, 4) for _ in range(4)), named=named)


def test_ends_of_a_detector_may_be_several():
    model = four(named=("0", "2", "3"))
    assert [layer.name for layer in first_last.without_kept_layers(model, "keep").layers] == ["1"]
    assert first_last.fixed_bits(model, "8bit") == {"0": 8, "2": 8, "3": 8}


def test_nothing_else_of_the_model_changes():
    model = four()
    kept = first_last.without_kept_layers(model, "keep")
    assert kept.net is model.net
    assert kept.ends == model.ends == ("0", "3")
    assert len(model.layers) == 4


def test_network_of_ends_alone():
    model = settled(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    with pytest.raises(
        SqError, match="ends=keep leaves nothing of 2 layers to quantize: set ends=8bit or ends=all"
    ):
        first_last.without_kept_layers(model, "keep")
    assert first_last.fixed_bits(model, "8bit") == {"0": 8, "2": 8}
    (only,) = {*settled(nn.Linear(4, 4)).ends}
    assert only == "0", "of a single layer, first and last are one"


ENDS = ("ends=8bit", "calibration.images=32", "quantizer=rtn", "correction=none", "threads=1")


def test_bits_that_are_settled_need_no_place_among_those_to_price(tmp_path):
    words = [
        "allocation=ilp",
        "bits=3.3",
        "sensitivity.bits=[2,3,4]",
        "activation=minmax",
        "sensitivity.input_bits=[4,6]",
    ]
    done = call(tmp_path, *ENDS, *words, "allocation.average_input_bits=5")
    assert done.returncode == 0, done.stderr
    (own,) = records(tmp_path)
    for rows in (own["sensitivity"], own["cost"]["inputs"]):
        assert {name: [*row] for name, row in rows.items() if name in (FIRST, LAST)} == {
            FIRST: ["8"],
            LAST: ["8"],
        }
    assert own["cost"]["predicted"] == pytest.approx(own["allocation"]["objective"])


def test_the_front_has_settled_ends_too(tmp_path):
    words = ["allocation=pareto", "bits=3.3", "sensitivity.bits=[2,3,4]", "allocation.points=2"]
    done = call(tmp_path, *ENDS, *words, "trials=front", "trials.images=20")
    assert done.returncode == 0, done.stderr
    (own,) = records(tmp_path)
    assert len(own["trials"]["front"]) >= 2


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    done = call(folder, "bits=3", "ends=all,8bit,keep", sweep=True)
    assert done.returncode == 0, done.stderr
    return {own["config"]["ends"]: own for own in record.read_all(folder / "results" / "runs")}


def test_bits_of_each_policy_in_a_run(runs):
    bits = {
        policy: {layer["name"]: layer["bits"] for layer in own["layers"]}
        for policy, own in runs.items()
    }
    assert {*bits["all"].values()} == {3}
    assert {FIRST, LAST} < {*bits["all"]}
    assert bits["8bit"] == {**bits["all"], FIRST: 8, LAST: 8}
    assert bits["keep"] == {name: 3 for name in bits["all"] if name not in (FIRST, LAST)}
    assert runs["keep"]["kept_layers"] == [FIRST, LAST]
    assert runs["all"]["kept_layers"] == runs["8bit"]["kept_layers"] == []


def test_size_and_mean_bits_of_each_policy_in_a_run(runs):
    results = {policy: own["results"] for policy, own in runs.items()}
    weights = {layer["name"]: layer["weights"] for layer in runs["all"]["layers"]}
    outer, whole = weights[FIRST] + weights[LAST], sum(weights.values())
    assert results["all"]["bits"] == results["keep"]["bits"] == 3
    assert results["8bit"]["bits"] == pytest.approx(3 + 5 * outer / whole)
    assert (
        results["all"]["bytes"]
        < results["8bit"]["bytes"]
        < results["keep"]["bytes"]
        < results["keep"]["bytes_full"]
    )
    assert (
        results["all"]["bops"]
        < results["8bit"]["bops"]
        < results["keep"]["bops"]
        < results["keep"]["bops_full"]
    )
    assert len({own["codes"] for own in results.values()}) == 3


def test_layers_between_the_ends_are_the_same_for_all_policies(runs):
    codes = {
        policy: {layer["name"]: layer["codes"] for layer in own["layers"]}
        for policy, own in runs.items()
    }
    for name in codes["keep"]:
        assert codes["all"][name] == codes["8bit"][name] == codes["keep"][name], name
    assert codes["all"][FIRST] != codes["8bit"][FIRST]
