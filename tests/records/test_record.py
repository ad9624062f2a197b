"""Records: named by what was computed, written whole or not at all, complete."""

import copy
import errno
import json
import os
import signal
import sys
from pathlib import Path

import processes
import pytest
from cli_helpers import ROOT, as_it_was, compose, environment, settings, snapshot

from sq import pipeline
from sq.config.schema import leaves
from sq.errors import SqError
from sq.records import record, run_locks
from sq.runs import job
from sq.runs.sweep.expand import Job
from sq.tracker import none

BOOKKEEPING = {
    "name",
    "results",
    "outputs",
    "rerun",
    "sweep",
    "tracker",
    "cache",
    "cache_gib",
    "workers",
    "plugins",
}


@pytest.fixture(scope="module", autouse=True)
def restored():
    with as_it_was():
        yield


@pytest.fixture(scope="module")
def config():
    return compose()[0]


def changed(config, name):
    """Return `config` with the setting of that dotted name set to something else."""
    other = copy.deepcopy(config)
    *folders, last = name.split(".")
    node = other
    for folder in folders:
        node = node[folder]
    node[last] = [node[last], "else"]
    return other


def test_key_changes_with_every_setting_but_bookkeeping(config):
    own = record.key(config)
    same = {name for name in leaves(config) if record.key(changed(config, name)) == own}
    assert same == {name for name in leaves(config) if name.split(".")[0] in BOOKKEEPING}


@pytest.mark.parametrize(
    "words",
    [
        ["seed=1"],
        ["bits=3"],
        ["grid.norm=2"],
        ["calibration.seed=1"],
        ["quantizer=rtn"],
        ["correction=none"],
    ],
)
def test_key_changes_with_what_a_user_changes(words, config):
    assert record.key(compose(*words)[0]) != record.key(config)


@pytest.mark.parametrize(
    "words",
    [
        ["name=other"],
        ["results=a", "outputs=b"],
        ["rerun=true"],
        ["tracker=none"],
        ["tracker.mode=online"],
    ],
)
def test_key_ignores_where_and_how_a_run_is_kept(words, config):
    assert record.key(compose(*words)[0]) == record.key(config)


def test_key_does_not_depend_on_how_a_number_was_typed(config):
    assert record.key(compose("bits=4.0")[0]) == record.key(config)
    assert record.key(compose("quantizer.damp=1e-2")[0]) == record.key(config)


def test_key_does_not_depend_on_the_order_of_settings(config):
    def turned(node):
        return {k: turned(v) for k, v in reversed(node.items())} if isinstance(node, dict) else node

    assert list(turned(config)) != list(config)
    assert record.key(turned(config)) == record.key(config)


def test_key_is_short_hex_and_names_the_file(config):
    key = record.key(config)
    assert len(key) == 16
    int(key, 16)
    assert record.path(config) == Path("results") / "runs" / f"{key}.json"


def test_write_then_read(tmp_path):
    made = {
        "record": record.VERSION,
        "key": "ab",
        "status": "done",
        "text": "ä",
        "none": None,
        "numbers": [1, 2.5],
    }
    file = tmp_path / "deep" / "down" / "ab.json"
    record.write(file, made)
    assert record.read(file) == made
    assert [f.name for f in file.parent.iterdir()] == ["ab.json"]


def test_missing_record_is_none(tmp_path):
    assert record.read(tmp_path / "nothing.json") is None
    assert record.read(tmp_path / "no" / "folder" / "nothing.json") is None


WHOLE = json.dumps({"record": 1, "key": "ab", "status": "done", "results": {}})


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\n",
        WHOLE[: len(WHOLE) // 2],
        WHOLE + WHOLE,
        "null",
        "[]",
        "1",
        "{}",
        '"record"',
        "\x00" * 40,
        '{"record": 1}',
    ],
    ids=repr,
)
def test_damaged_record_is_named(text, tmp_path):
    file = tmp_path / "ab.json"
    file.write_text(text)
    with pytest.raises(SqError, match=r"ab\.json.*delete it"):
        record.read(file)
    assert file.read_text() == text


def test_record_that_is_no_text_is_named(tmp_path):
    file = tmp_path / "ab.json"
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SqError, match=r"ab\.json"):
        record.read(file)


def test_record_of_another_version_is_named(tmp_path):
    file = tmp_path / "ab.json"
    file.write_text(json.dumps({"record": record.VERSION + 1}))
    with pytest.raises(
        SqError, match=rf"ab\.json.*version {record.VERSION + 1}.*reads {record.VERSION}"
    ):
        record.read(file)


def test_record_below_a_file_is_an_error_with_a_way_out(tmp_path):
    (tmp_path / "file").write_text("precious")
    with pytest.raises(SqError, match="file"):
        record.read(tmp_path / "file" / "ab.json")
    with pytest.raises(SqError, match="file"):
        record.write(tmp_path / "file" / "ab.json", {"record": 1})
    with pytest.raises(SqError, match="file"):
        record.probe(tmp_path / "file")
    assert (tmp_path / "file").read_text() == "precious"


def test_read_all_sorts_and_skips_what_is_no_record(tmp_path):
    for key in ("b", "a"):
        record.write(tmp_path / f"{key}.json", {"record": 1, "key": key, "status": "done"})
    (tmp_path / ".c.1.part").write_text('{"rec')
    (tmp_path / "table.md").write_text("")
    assert [r["key"] for r in record.read_all(tmp_path)] == ["a", "b"]


def test_read_all_of_nothing(tmp_path):
    with pytest.raises(SqError, match="no records in"):
        record.read_all(tmp_path)
    with pytest.raises(SqError, match="no records in"):
        record.read_all(tmp_path / "nowhere")


def full_disk(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize(
    "step", ["os.fsync", "pathlib.Path.replace", "pathlib.Path.open", "pathlib.Path.mkdir"]
)
def test_full_disk_leaves_the_earlier_record(step, tmp_path, monkeypatch):
    file = tmp_path / "ab.json"
    record.write(file, {"record": 1, "status": "done"})
    before = snapshot(tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(step, lambda *args, **_: full_disk())
        with pytest.raises(SqError, match=r"ab\.json: No space left on device; free space"):
            record.write(file, {"record": 1, "status": "failed"})
    assert snapshot(tmp_path) == before
    assert [f.name for f in tmp_path.iterdir()] == ["ab.json"]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_json_does_not_have_are_refused(value, tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        record.write(tmp_path / "ab.json", {"record": 1, "kl": value})
    assert list(tmp_path.iterdir()) == []


def test_kill_in_the_middle_of_writing(tmp_path):
    file = tmp_path / "ab.json"
    record.write(file, {"record": 1, "status": "done"})
    before = snapshot(tmp_path)
    code = (
        "import os, signal, sys; from pathlib import Path; from sq.records import record;"
        "os.fsync = lambda _: os.kill(os.getpid(), signal.SIGKILL);"
        "record.write(Path(sys.argv[1]), {'record': 1, 'status': 'failed'})"
    )
    env = environment(tmp_path, PYTHONPATH=str(ROOT))
    done = processes.run([sys.executable, "-c", code, str(file)], env=env, timeout=60, check=False)
    assert done.returncode == -signal.SIGKILL
    assert snapshot(tmp_path) == before
    assert record.read_all(tmp_path) == [{"record": 1, "status": "done"}]


FOUND = {
    "calibration": {"images": 2, "ids": "abc"},
    "calibration_ids": ["i/1", "i/7"],
    "sheet": None,
    "results": {"relative_error": 0.1, "drop": 0.0},
    "seconds": {"load": 1.0},
}


def boom(*_):
    raise RuntimeError("out of\n  memory")


@pytest.fixture
def made(tmp_path, monkeypatch):
    """Return the config of a cheap run, and stand in for the pipeline."""
    monkeypatch.setattr(pipeline, "run", lambda *_: copy.deepcopy(FOUND))
    return compose(*settings(tmp_path))


def test_run_that_fails_leaves_its_error_and_is_done_again(made, tmp_path, monkeypatch):
    config, choices = made
    monkeypatch.setattr(pipeline, "run", boom)
    failed = job.execute(Job([], config, choices), wait=True)
    assert record.read(record.path(config)) == failed
    assert failed["status"] == "failed"
    assert failed["error"] == "RuntimeError: out of memory"
    assert "boom" in failed["traceback"]
    assert "results" not in failed
    assert failed["provenance"]["commit"]
    monkeypatch.setattr(pipeline, "run", lambda *_: copy.deepcopy(FOUND))
    done = job.execute(Job([], config, choices), wait=True)
    assert done["status"] == "done"
    assert "error" not in done
    assert "calibration_ids" not in done
    assert (tmp_path / "results" / "runs" / "calibration" / "abc.txt").read_text() == "i/1\ni/7\n"
    assert "traceback" not in done
    assert record.read(record.path(config)) == done


@pytest.mark.parametrize("works", [True, False])
def test_record_is_kept_before_the_tracker_is_left(works, made, monkeypatch):
    config, choices = made
    seen = []

    def close(_, kept):
        seen.append((kept, record.read(record.path(config)), run_locks.holder(record.path(config))))
        raise KeyboardInterrupt  # the process dies while it waits

    monkeypatch.setattr(none.Tracker, "close", close)
    if not works:
        monkeypatch.setattr(pipeline, "run", boom)
    with pytest.raises(KeyboardInterrupt):
        job.execute(Job([], config, choices), wait=True)
    ((shown, on_disk, holder),) = seen
    assert on_disk == shown
    assert on_disk["status"] == ("done" if works else "failed")
    assert holder["pid"] == os.getpid(), "nobody else may send the same page meanwhile"


def test_done_run_is_not_done_again_unless_asked(made, monkeypatch):
    config, choices = made
    first = job.execute(Job([], config, choices), wait=True)
    monkeypatch.setattr(pipeline, "run", lambda *_: {**FOUND, "statistics": "new"})
    assert job.execute(Job([], config, choices), wait=True) == first
    again = job.execute(Job([], {**config, "rerun": True}, choices), wait=True)
    assert again["statistics"] == "new"
    assert record.read(record.path(config)) == again


def test_failed_rerun_keeps_the_done_record(made, tmp_path, monkeypatch):
    config, choices = made
    job.execute(Job([], config, choices), wait=True)
    before = snapshot(tmp_path / "results")
    monkeypatch.setattr(pipeline, "run", boom)
    assert job.execute(Job([], {**config, "rerun": True}, choices), wait=True)["status"] == "failed"
    after = snapshot(tmp_path / "results")
    assert {name: after[name] for name in before} == before
    monkeypatch.undo()
    assert job.execute(Job([], {**config, "rerun": True}, choices), wait=True)["status"] == "done"
    assert snapshot(tmp_path / "results").keys() == before.keys()


def test_interrupt_leaves_no_record(made, tmp_path, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    config, choices = made
    monkeypatch.setattr(pipeline, "run", interrupt)
    with pytest.raises(KeyboardInterrupt):
        job.execute(Job([], config, choices), wait=True)
    folder = tmp_path / "results" / "runs"
    assert [p for p in folder.rglob("*") if p.is_file()] == []
    assert run_locks.holder(record.path(config)) is None


@pytest.mark.parametrize("value", [float("nan"), object()], ids=["NaN", "no JSON"])
def test_figures_that_cannot_be_written_fail_the_run_with_a_record(value, made, monkeypatch):
    config, choices = made
    monkeypatch.setattr(pipeline, "run", lambda *_: {**FOUND, "correction": {"error": value}})
    assert job.execute(Job([], config, choices), wait=True)["status"] == "failed"
    assert record.read(record.path(config))["status"] == "failed"


def test_no_log_folder_does_not_stop_a_run(made, tmp_path):
    config, choices = made
    (tmp_path / "outputs").write_text("")
    assert job.execute(Job([], config, choices), wait=True)["status"] == "done"


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """Return the record of a real run."""
    folder = tmp_path_factory.mktemp("real")
    config, choices = compose(*settings(folder), "correction=batchnorm", "threads=null")
    return config, choices, job.execute(Job([], config, choices), wait=True)


def test_record_says_what_was_run(real):
    config, choices, made = real
    assert made["status"] == "done", made["traceback"]
    assert made["record"] == record.VERSION
    assert made["key"] == record.key(config)
    assert made["name"] == "runs"
    assert made["config"] == config
    assert made["choices"] == choices
    assert record.read(record.path(config)) == made


def test_record_holds_full_precision_and_quantized_figures(real):
    figures = real[2]["results"]
    assert {
        "top1",
        "top1_full",
        "drop",
        "logit_snr_db",
        "kl",
        "same_top1",
        "relative_error",
    } <= set(figures)
    assert {
        "bits",
        "bytes",
        "bytes_full",
        "bops",
        "bops_full",
        "solve_seconds",
        "fit_seconds",
        "codes",
    } <= set(figures)
    assert figures["drop"] == pytest.approx(figures["top1_full"] - figures["top1"])
    assert figures["bits"] == 4
    assert figures["bops"] == figures["bops_full"] / 8  # 4 bits of 32
    assert figures["bytes"] < figures["bytes_full"] / 6
    assert len(figures["codes"]) == 16


def test_record_describes_every_layer(real):
    layers = real[2]["layers"]
    assert len(layers) == 22
    assert len({layer["name"] for layer in layers}) == 22
    wanted = {
        "bits",
        "weights",
        "bytes",
        "macs",
        "bops",
        "groups",
        "outputs",
        "inputs",
        "kind",
        "codes",
    }
    wanted |= {
        "fit_seconds",
        "solve_seconds",
        "solve_cpu_seconds",
        "relative_error",
        "damp_used",
        "damp_retries",
        "dead_inputs",
    }
    for layer in layers:
        assert wanted <= set(layer)
        assert layer["weights"] == layer["groups"] * layer["outputs"] * layer["inputs"]
        assert 0 < layer["relative_error"] < 1
        assert layer["damp_used"] == 0.01
    kinds = {layer["kind"] for layer in layers}
    assert kinds == {"3x3", "1x1", "3x3 grouped", "3x3 depthwise", "linear"}
    figures = real[2]["results"]
    assert figures["relative_error"] == pytest.approx(
        sum(x["relative_error"] for x in layers) / len(layers)
    )
    assert figures["solve_seconds"] == pytest.approx(sum(x["solve_seconds"] for x in layers))
    assert figures["solve_cpu_seconds"] == pytest.approx(
        sum(x["solve_cpu_seconds"] for x in layers)
    )
    assert figures["bops"] == sum(x["bops"] for x in layers)


def test_record_holds_time_and_memory(real):
    made = real[2]
    phases = [
        "load",
        "calibrate",
        "full_precision",
        "statistics",
        "activation",
        "sensitivity",
        "allocation",
    ]
    phases += ["quantize", "correct", "evaluate", "trials", "export", "latency"]
    assert list(made["seconds"]) == phases
    assert all(seconds >= 0 for seconds in made["seconds"].values())
    assert made["results"]["solve_seconds"] < made["seconds"]["quantize"]
    assert made["peak_bytes"]["process"] > 1e8


def test_record_says_which_images_weights_and_statistics(real):
    made = real[2]
    assert made["calibration"]["images"] == 32
    assert len(made["calibration"]["ids"]) == 16
    assert len(made["statistics"]) == 16
    assert len(made["checkpoint"]) == 64
    assert made["skipped_layers"] == []
    assert made["correction"]["layers"] == 21
    assert {name: list(row) for name, row in made["sensitivity"].items()} == {
        x["name"]: ["4"] for x in made["layers"]
    }
    assert (made["image_set"], made["evaluation"]["images"]) == ("digits_every_3", 596)
    assert made["calibration"]["left_out"] == made["evaluation"]["left_out"] == []
    assert made["expected"] == {"top1": 99.16, "within": 0.3}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Return a function that runs a cheap job with other settings, and gives its record."""

    def made(*words):
        found = job.execute(
            Job([], *compose(*settings(tmp_path_factory.mktemp("other")), "threads=null", *words)),
            wait=True,
        )
        assert found["status"] == "done", found["traceback"]
        return found

    return made


def test_folded_network_with_quantized_inputs(run, real):
    found = run("fold=true", "activation=minmax", "activation.bits=6")
    assert len(found["folded"]["folded"]) == 21
    assert found["folded"]["left"] == []
    assert {x["activation_bits"] for x in found["layers"]} == {6}
    assert found["results"]["bops"] == found["results"]["bops_full"] * 4 * 6 / 32**2
    assert found["results"]["top1_full"] == real[2]["results"]["top1_full"], (
        "folding changes no answer"
    )
    assert found["results"]["bytes_full"] < real[2]["results"]["bytes_full"], "BatchNorms are gone"
    assert real[2]["folded"] is None


def test_inputs_of_the_quantized_network(run):
    own, theirs = run("calibration.inputs=quantized", "quantizer=gptq"), run("quantizer=gptq")
    assert own["calibration"] == theirs["calibration"]
    assert own["statistics"] == theirs["statistics"]
    codes = [{x["name"]: x["codes"] for x in found["layers"]} for found in (own, theirs)]
    assert codes[0]["stem.0"] == codes[1]["stem.0"], "nothing is quantized before the first layer"
    assert codes[0]["head"] != codes[1]["head"]


def test_full_precision_that_is_not_as_expected_stops_a_run_before_it_quantizes(tmp_path):
    words = ("model.expected.digits_every_3.top1=98.0",)
    found = job.execute(Job([], *compose(*settings(tmp_path), *words)), wait=True)
    assert found["status"] == "failed"
    assert "full precision: top1 is 99.16 on digits_every_3, expected 98 +- 0.3" in found["error"]
    assert "results" not in found


def test_settings_that_came_later_leave_keys_as_they_were(config):
    old = {name: value for name, value in config.items() if name != "trials"}
    old["sensitivity"] = {
        name: value for name, value in config["sensitivity"].items() if name != "input_bits"
    }
    assert record.key(config) == record.key(old)
    changed = {**config, "sensitivity": {**config["sensitivity"], "input_bits": [4]}}
    assert record.key(changed) != record.key(config)
    assert record.key({**config, "trials": {"_target_": "sq.trials.other"}}) != record.key(config)
