"""Functions that have moved: keys stay, and what names them as they were called is read as today's."""

import copy
import json
import re

import pytest
from cli_helpers import ROOT, call, compose, records

import sq
from sq.config import renamed_targets
from sq.config.instantiate import build, check
from sq.core import plugins
from sq.errors import SqError
from sq.export import container
from sq.records import record

RECORDS = sorted(
    file for file in (ROOT / "results").glob("*/*.json") if re.fullmatch("[0-9a-f]{16}", file.stem)
)
# A function that moved from one module to another and then to where it is: two lines for one first
# name.
MOVED_TWICE = {
    "sq.compensation.solve": "sq.obs.solve",
    "sq.solver.gptq.solve": "sq.obs.solve",
}
EARLIER = ("sq.obs.solve", "sq.compensation.solve")


def targets(value):
    """Yield the function that each part of a config names, at any depth."""
    if isinstance(value, dict):
        if "_target_" in value:
            yield value["_target_"]
        for inner in value.values():
            yield from targets(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from targets(inner)


@pytest.fixture
def moved(monkeypatch):
    monkeypatch.setattr(renamed_targets, "RENAMED", renamed_targets.RENAMED | MOVED_TWICE)


def with_solver(name):
    """Return the config of gptq, with its solver called `name`."""
    config, _ = compose("quantizer=gptq")
    config["quantizer"]["solve"]["_target_"] = name
    return config


def test_every_committed_record_is_found_under_the_key_of_its_config():
    assert RECORDS
    for file in RECORDS:
        written = json.loads(file.read_text())
        assert record.key(written["config"]) == written["key"] == file.stem, file
        assert record.key(record.read(file)["config"]) == file.stem, file


def test_every_function_that_a_committed_record_names_is_there_today():
    named = {name for file in RECORDS for name in targets(record.read(file)["config"])}
    assert "sq.quantizer.layerwise.quantize" in named
    for name in named:
        assert callable(plugins.find(name, "_target_"))


def test_names_of_the_table_are_there_today_and_no_first_name_is():
    latest = {first: later for later, first in renamed_targets.RENAMED.items()}
    for first, later in latest.items():
        assert callable(plugins.find(later, "_target_"))
        with pytest.raises(SqError):
            plugins.find(first, "_target_")


@pytest.mark.parametrize("name", [*EARLIER, "sq.solver.gptq.solve"])
def test_key_is_that_of_the_first_name(name, moved, monkeypatch):
    key = record.key(with_solver(name))
    monkeypatch.undo()
    assert (
        key
        == record.key(with_solver("sq.obs.solve"))
        != record.key(with_solver("sq.solver.gptq.solve"))
    )


@pytest.mark.parametrize("name", EARLIER)
def test_part_with_an_earlier_name_is_built(name, moved):
    part = with_solver(name)["quantizer"]
    before = copy.deepcopy(part)
    check(part, "quantizer")
    assert build(part, "quantizer").keywords["solve"].func is plugins.find(
        "sq.solver.gptq.solve", ""
    )
    assert part == before


@pytest.mark.parametrize("name", EARLIER)
def test_record_with_an_earlier_name_is_read_with_todays(name, moved, tmp_path):
    config, choices = compose("quantizer=gptq")
    file = tmp_path / "ab.json"
    record.write(
        file, {"record": 1, "status": "done", "config": with_solver(name), "choices": choices}
    )
    before = file.read_bytes()
    assert record.read(file)["config"] == config
    assert file.read_bytes() == before


def test_name_of_a_later_setting_is_todays(moved, monkeypatch):
    config, choices = compose("trials=none")
    names = renamed_targets.RENAMED | {"sq.trials.none.measure": "sq.nothing.measure"}
    monkeypatch.setattr(renamed_targets, "RENAMED", names)
    monkeypatch.setitem(
        record.migrations.SETTINGS, "trials", {"_target_": "sq.nothing.measure", "_partial_": True}
    )
    earlier = {name: value for name, value in config.items() if name != "trials"}
    assert record.key(config) == record.key(earlier)
    written = {"config": earlier, "choices": choices}
    record.migrations.complete(written)
    assert written["config"] == config


def test_packed_file_with_an_earlier_name_of_its_network_is_loaded(tmp_path, monkeypatch):
    names = renamed_targets.RENAMED | {"sq.model.digits_resnet.load": "sq.networks.digits.load"}
    monkeypatch.setattr(renamed_targets, "RENAMED", names)
    done = call(tmp_path, "export=packed", "bits=3")
    assert done.returncode == 0, done.stderr
    (made,) = records(tmp_path)
    file = tmp_path / "outputs" / made["export"]["file"]
    layout, tensors = container.read(file)
    assert layout["config"]["model"]["_target_"] == "sq.model.digits_resnet.load"
    state = sq.load(file).state_dict()
    layout["config"]["model"]["_target_"] = "sq.networks.digits.load"
    container.write(file, layout, tensors)
    again = sq.load(file).state_dict()
    assert [*again] == [*state]
    assert all(bool((again[name] == state[name]).all()) for name in state)
