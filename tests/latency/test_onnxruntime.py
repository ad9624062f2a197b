"""Latency of runs in onnxruntime: what is timed, what a table holds, and that an allocation takes it."""

import json

import pytest
from cli_helpers import call, error_line, records

from sq import latency_table

WORDS = ["latency=onnxruntime", "latency.rounds=5", "latency.warmup=1", "quantizer=rtn"]


def timed(folder, *words):
    done = call(folder, *WORDS, *words)
    assert done.returncode == 0, done.stderr
    (made,) = records(folder)
    return made


def test_networks_stand_side_by_side(tmp_path):
    made = timed(tmp_path, "bits=4", "activation=mse", "activation.bits=8", "export=onnx", "latency.layers=false")
    said = made["latency"]
    assert list(said["networks"]) == ["full", "eight", "own", "wide"]
    for own in said["networks"].values():
        assert 0 < own["low"] <= own["median"] <= own["high"]
        assert own["faster"]["low"] <= own["faster"]["median"] <= own["faster"]["high"]
    assert said["networks"]["full"]["faster"]["median"] == 1
    size = {name: own["bytes"] for name, own in said["networks"].items()}
    assert size["own"] < 0.65 * size["wide"] < 0.65 * 0.35 * size["full"]
    assert abs(size["own"] - made["export"]["bytes"]) < 300, "the exported file says what it is, besides"
    assert (said["images"], said["cores"], said["rounds"]) == (1, 1, 5)
    assert said["runtime"].startswith("onnxruntime ")
    assert "table" not in said
    assert "layers" not in said


def test_nothing_is_stored_wider_than_it_is(tmp_path):
    made = timed(tmp_path, "bits=8", "latency.layers=false", "latency.images=3")
    assert list(made["latency"]["networks"]) == ["full", "eight", "own"]


def test_a_table_of_layers_bounds_an_allocation(tmp_path):
    first = timed(tmp_path, "bits=4", "activation=mse", "sensitivity.bits=[2,4,8]")
    file = tmp_path / "results" / "runs" / first["latency"]["table"]
    table = latency_table.read(str(file))
    names = [layer["name"] for layer in first["layers"]]
    assert set(table.ms) == {(n, w, a) for n in names for w in (2, 4, 8) for a in (4, 8, 32)} | {
        (n, 32, 32) for n in names
    }
    assert all(table.ms[n, 2, a] == table.ms[n, 4, a] for n in names for a in (8, 32)), "both are stored in 4"
    assert {own["layer"] for own in first["latency"]["layers"]} == set(names)
    narrow, wide = (sum(table.ms[n, bits, 8] for n in names) for bits in (4, 8))
    bound = (narrow + wide) / 2
    words = ["allocation=ilp", "bits=8", f"allocation.latency={bound:.5f}", f"allocation.latency_table={file}"]
    done = call(tmp_path, *words, "quantizer=rtn", "activation=mse", "sensitivity.bits=[2,4,8]")
    assert done.returncode == 0, done.stderr
    (second,) = (r for r in records(tmp_path) if r["key"] != first["key"])
    took = sum(table.ms[layer["name"], layer["bits"], 8] for layer in second["layers"])
    assert took <= bound


def test_layers_that_stay_in_full_precision_are_in_the_table(tmp_path):
    made = timed(tmp_path, "bits=4", "ends=keep", "latency.bits=[4]", "latency.input_bits=[32]")
    kept = {own["layer"] for own in made["latency"]["layers"]} - {layer["name"] for layer in made["layers"]}
    assert len(kept) == 2
    table = latency_table.read(str(tmp_path / "results" / "runs" / made["latency"]["table"]))
    assert all((name, 32, 32) in table.ms for name in kept)


@pytest.mark.parametrize(
    ("words", "cause"),
    [
        (["latency.rounds=0"], "latency.rounds=0"),
        (["latency.images=0"], "latency.images=0"),
        (["latency.cores=-1"], "latency.cores=-1"),
        (["latency.bits=[]"], "latency.bits"),
        (["quantizer=asq_ptq", "activation=mse"], "cannot hold steps that adapt to the sample"),
        (["bits=9"], "holds codes of up to 8 bits"),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_runs(words, cause, tmp_path):
    line = error_line(call(tmp_path, "latency=onnxruntime", *words))
    assert cause in line
    assert not any("seconds" in json.loads(file.read_text()) for file in tmp_path.rglob("*.json"))
