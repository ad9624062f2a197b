"""Latency of runs in onnxruntime: what is timed, what a table holds, and that an allocation takes it."""

import json

import pytest
import shared_exports
from cli_helpers import call, error_line, records

from sq.allocation import latency_table
from sq.core import processor
from sq.export import onnx_export, onnx_qdq
from sq.grid.uniform_grid import UniformGrid

WORDS = ["latency=onnxruntime", "latency.rounds=5", "latency.warmup=1", "quantizer=rtn"]


@pytest.fixture(autouse=True)
def exporter(monkeypatch):
    monkeypatch.setattr(onnx_export, "exported", shared_exports.exported)


def timed(folder, *words):
    done = call(folder, *WORDS, *words)
    assert done.returncode == 0, done.stderr
    (made,) = records(folder)
    return made


def test_networks_stand_side_by_side(tmp_path):
    made = timed(
        tmp_path,
        "bits=4",
        "activation=mse",
        "activation.bits=8",
        "export=onnx",
        "latency.layers=false",
    )
    said = made["latency"]
    assert list(said["networks"]) == ["full", "w8a8", "w4a8", "run", "run_in_8"]
    for own in said["networks"].values():
        assert 0 < own["low"] <= own["median"] <= own["high"]
        assert own["faster"]["low"] <= own["faster"]["median"] <= own["faster"]["high"]
    assert said["networks"]["full"]["faster"]["median"] == 1
    size = {name: own["bytes"] for name, own in said["networks"].items()}
    assert size["run"] < 0.65 * size["run_in_8"] < 0.65 * 0.35 * size["full"]
    assert size["w4a8"] < 0.65 * size["w8a8"] < 0.65 * 0.35 * size["full"]
    assert abs(size["run"] - made["export"]["bytes"]) < 300, (
        "the exported file says what it is, besides"
    )
    assert (said["images"], said["threads"], said["rounds"]) == (1, 1, 5)
    assert said["runtime"].startswith("onnxruntime ")
    assert (said["vnni"], said["saturating_layers"]) == (processor.vnni(), 0)
    assert not {"table", "layers", "sums"} & {*said}


def test_w8a8_and_w4a8_are_there_whatever_the_run_does(tmp_path):
    made = timed(tmp_path, "bits=8", "latency.layers=false", "latency.images=3")
    assert list(made["latency"]["networks"]) == ["full", "w8a8", "w4a8", "run"], (
        "nothing is stored wider than it is"
    )


def test_a_table_of_layers_bounds_an_allocation(tmp_path):
    words = ["activation=mse", "sensitivity.bits=[2,4,8]", "fold=true"]
    first = timed(tmp_path, "bits=4", *words)
    said = first["latency"]
    file = tmp_path / "results" / "runs" / said["table"]
    table = latency_table.read(str(file))
    names = [layer["name"] for layer in first["layers"]]
    assert set(table.ms) == {(n, w, a) for n in names for w in (2, 4, 8) for a in (4, 8, 32)} | {
        (n, 32, 32) for n in names
    }
    assert all(table.ms[n, 2, a] == table.ms[n, 4, a] for n in names for a in (8, 32)), (
        "both are stored in 4"
    )
    assert said["sums"]["full"] == pytest.approx(sum(table.ms[n, 32, 32] for n in names), abs=1e-3)
    assert said["sums"]["run"] == pytest.approx(sum(table.ms[n, 4, 8] for n in names), abs=1e-3)
    low, high = (
        sum(pick(table.ms[n, bits, 8] for bits in (2, 4, 8)) for n in names) for pick in (min, max)
    )
    bound = (low + high) / 2
    more = [
        "allocation=ilp",
        "bits=8",
        f"allocation.latency={bound:.5f}",
        f"allocation.latency_table={file}",
    ]
    done = call(tmp_path, "quantizer=rtn", *words, *more)
    assert done.returncode == 0, done.stderr
    (second,) = (r for r in records(tmp_path) if r["key"] != first["key"])
    took = sum(table.ms[layer["name"], layer["bits"], 8] for layer in second["layers"])
    assert took <= bound


def test_layers_that_stay_in_full_precision_are_in_the_table(tmp_path):
    made = timed(tmp_path, "bits=4", "ends=keep", "latency.bits=[4]", "latency.input_bits=[32]")
    kept = {own["layer"] for own in made["latency"]["layers"]} - {
        layer["name"] for layer in made["layers"]
    }
    assert len(kept) == 2
    table = latency_table.read(str(tmp_path / "results" / "runs" / made["latency"]["table"]))
    assert {key for key in table.ms if key[0] in kept} == {(name, 32, 32) for name in kept}


def test_a_table_is_of_the_runs_grid(tmp_path):
    made = timed(tmp_path, "bits=4", "grid=post", "latency.bits=[2,4]", "latency.input_bits=[8]")
    bits = {tuple(own["bits"]) for own in made["latency"]["layers"]}
    assert bits == {(2,), (4,), (32,)}, "2^4 + 1 levels are stored in 8 bits"


def test_a_model_that_computes_something_else_is_not_timed(tmp_path, monkeypatch):
    put = onnx_qdq.put_input

    def wrong(graph, layer, grid, calls):
        put(graph, layer, UniformGrid(grid.scale * 3, grid.low, grid.high, grid.levels), calls)

    monkeypatch.setattr(onnx_qdq, "put_input", wrong)
    done = call(tmp_path, *WORDS, "activation=mse", "activation.bits=4", "latency.layers=false")
    assert "latency=onnxruntime: outputs of the ONNX model are" in done.stderr
    assert "latency=none leaves this out" in done.stderr


def test_more_threads_than_cores_are_refused(tmp_path):
    line = error_line(call(tmp_path, *WORDS, "latency.threads=4096"))
    assert "latency.threads=4096: this process has" in line


@pytest.mark.parametrize(
    ("words", "cause"),
    [
        (["latency.rounds=0"], "latency.rounds=0"),
        (["latency.images=0"], "latency.images=0"),
        (["latency.threads=-1"], "latency.threads=-1"),
        (["latency.bits=[]"], "latency.bits"),
        (["latency.bits=8"], "latency.bits"),
        (["latency.bits=[16]"], "layers are timed at 1 to 8 bits"),
        (["grid=post", "ends=8bit"], "and no ends=8bit"),
        (["latency.input_bits=[16]"], "set them so, or latency.layers=false"),
        (["grid=post", "latency.bits=[8]"], "(grid=pot and post: 7)"),
        (["grid=pot", "bits=8", "latency.layers=false"], "7 with grid=pot or post"),
        (["quantizer=asq_ptq", "activation=mse"], "cannot hold steps that adapt to the sample"),
        (["bits=9"], "holds codes of up to 8 bits"),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_runs(words, cause, tmp_path):
    line = error_line(call(tmp_path, "latency=onnxruntime", *words))
    assert cause in line
    assert not any("seconds" in json.loads(file.read_text()) for file in tmp_path.rglob("*.json"))
