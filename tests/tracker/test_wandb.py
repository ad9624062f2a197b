"""W&B: a whole mirror of each record, and no way for the client to fail or hold up a run."""

import errno
import logging
import os
import sys
import threading
import time

import pytest
import wandb
from cli_helpers import as_it_was, compose, run, settings
from wandb_helpers import client, offline, rows

from sq import pipeline
from sq.config.instantiate import check
from sq.errors import SqError
from sq.records import record
from sq.report import table
from sq.runs import job
from sq.runs.sweep.expand import Job
from sq.tracker import none, run_page
from sq.tracker import wandb as tracker

TAGS = ("digits_resnet", "digits", "rtn", "bits=4", "correction=none", "activation=none")
IMAGES = {"calibration": {"ids": "abc"}, "calibration_ids": [], "sheet": None}


@pytest.fixture(scope="module", autouse=True)
def restored():
    with as_it_was():
        yield


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """Return the records of two good runs and a failing one, what W&B knows of each, by key, and of the whole."""
    folder = tmp_path_factory.mktemp("wandb")
    words = ["tracker=wandb", f"tracker.dir={folder / 'mirror'}", "name=trial"]
    done = run(folder, *words, "calibration.images=32,48,100000", sweep=True)
    records = {r["key"]: r for r in record.read_all(folder / "results" / "trial")}
    seen = offline(folder / "mirror")
    runs = [own for own in seen if own["run"].job_type == "run"]
    whole = [own for own in seen if own["run"].job_type == "summary"]
    return folder, done, records, {own["config"]["key"]: own for own in runs}, len(runs), whole


def test_one_offline_run_for_each_record(swept):
    folder, done, records, runs, count, _ = swept
    assert "2 of 3 runs done, 1 failed" in done.stderr
    assert len(records) == count == 3
    assert set(runs) == set(records)
    assert list((folder / "cwd").iterdir()) == []


def test_client_says_nothing(swept):
    assert (
        "wandb"
        not in swept[1].stderr.replace("tracker=wandb", "").replace(str(swept[0]), "").lower()
    )
    assert "wandb" not in swept[1].stdout.lower()


def test_mirror_holds_config_and_figures(swept):
    _, _, records, runs, _, _ = swept
    done = [r for r in records.values() if r["status"] == "done"]
    assert len(done) == 2
    for made in done:
        seen = runs[made["key"]]
        assert seen["run"].run_group == "trial"
        assert seen["run"].project == "sq"
        assert seen["run"].run_id == run_page.identity("trial", made["key"])
        assert set(seen["run"].tags) == set(TAGS)
        assert seen["config"]["bits"] == 4
        assert seen["config"]["choices"] == made["choices"]
        assert {name: seen["config"][name] for name in made["config"]} == made["config"]
        assert seen["summary"]["status"] == "done"
        assert {name: seen["summary"][name] for name in made["results"]} == made["results"]
        assert seen["summary"]["seconds/quantize"] == made["seconds"]["quantize"]
        assert any(name.startswith("layers") for name in seen["summary"])
        assert any(name.startswith("sensitivity") for name in seen["summary"])
        assert seen["exit"] == 0


def test_mirror_of_a_failed_run_says_so(swept):
    _, _, records, runs, _, _ = swept
    (failed,) = (r for r in records.values() if r["status"] == "failed")
    seen = runs[failed["key"]]
    assert seen["exit"] not in (0, None)
    assert seen["summary"]["status"] == "failed"
    assert seen["summary"]["error"] == failed["error"]
    assert "Traceback" in seen["summary"]["traceback"]
    assert seen["summary"]["traceback"] == failed["traceback"]


def test_experiment_as_a_whole_is_one_more(swept):
    _, _, records, _, _, whole = swept
    (seen,) = whole
    done = [r for r in records.values() if r["status"] == "done"]
    (failed,) = (r for r in records.values() if r["status"] == "failed")
    assert seen["run"].run_id == run_page.summary_identity("trial")
    assert seen["run"].run_group == "trial"
    assert seen["exit"] == 1
    assert {name: seen["summary"][name] for name in ("runs", "done", "failed")} == {
        "runs": 3,
        "done": 2,
        "failed": 1,
    }
    made = table.build(sorted(done, key=lambda r: r["key"]))
    assert rows(seen, "table") == (list(made.columns), made.to_numpy().tolist())
    ((line,),) = rows(seen, "failures")[1]
    assert failed["key"] in line
    assert failed["error"] in line
    pictures = [f for name, f in seen["media"].items() if name.startswith("media/images/")]
    assert len(pictures) == 2
    assert all(f.read_bytes().startswith(b"\x89PNG") for f in pictures)


def test_finished_runs_are_not_mirrored_again(swept):
    folder, _, _, _, count, whole = swept
    words = ["tracker=wandb", f"tracker.dir={folder / 'mirror'}", "name=trial"]
    assert run(folder, *words, "calibration.images=32,48", sweep=True).returncode == 0
    assert len(list((folder / "mirror" / "wandb").glob("offline-run-*"))) == count + len(whole)


def test_figures_outlive_a_failed_repetition(tmp_path, monkeypatch):
    figures = {
        "results": {"top1": 1.0},
        "seconds": {},
        "layers": [{"name": "a"}],
        "sensitivity": {},
    }
    words = [*settings(tmp_path), "tracker=wandb", f"tracker.dir={tmp_path / 'mirror'}"]
    with client(tmp_path):
        monkeypatch.setattr(pipeline, "run", lambda *_: {**IMAGES, **figures})
        assert job.execute(Job([], *compose(*words)), wait=True)["status"] == "done"
        monkeypatch.setattr(pipeline, "run", raising)
        assert job.execute(Job([], *compose(*words, "rerun=true")), wait=True)["status"] == "failed"
    first, second = offline(tmp_path / "mirror")
    assert first["run"].run_id == second["run"].run_id
    assert "repeat_error" not in first["summary"]
    assert second["summary"]["top1"] == 1.0
    assert second["summary"]["repeat_error"] == "RuntimeError: no service"
    assert second["config"]["rerun"] is False, "the config is that of the figures"
    assert second["exit"] == 0


def test_failure_of_the_client_is_logged_for_a_run(tmp_path, monkeypatch):
    monkeypatch.setattr(
        pipeline,
        "run",
        lambda *_: {**IMAGES, "results": {}, "seconds": {}, "layers": [], "sensitivity": {}},
    )
    monkeypatch.setattr(wandb, "init", raising)
    config, choices = compose(
        *settings(tmp_path), "tracker=wandb", f"tracker.dir={tmp_path / 'mirror'}"
    )
    made = job.execute(Job([], config, choices), wait=True)
    assert made["status"] == "done"
    log = (tmp_path / "outputs" / "runs" / f"{made['key']}.log").read_text()
    assert "W&B could not start: no service" in log


@pytest.mark.parametrize("words", [["tracker=none"], ["tracker=wandb", "tracker.mode=disabled"]])
def test_no_tracker_writes_nothing(words, tmp_path, monkeypatch):
    monkeypatch.setattr(pipeline, "run", lambda *_: {**IMAGES, "results": {}, "seconds": {}})
    monkeypatch.setattr(wandb, "init", raising)
    monkeypatch.chdir(tmp_path)
    mirror = [f"tracker.dir={tmp_path / 'mirror'}"] if "tracker=wandb" in words else []
    config, choices = compose(*settings(tmp_path), *words, *mirror)
    made = job.execute(Job([], config, choices), wait=True)
    assert made["status"] == "done"
    assert {f.name for f in tmp_path.iterdir()} == {"results", "outputs"}
    lines = (tmp_path / "outputs" / "runs" / f"{made['key']}.log").read_text().splitlines()
    assert [" begun on " in lines[0], " ended: done" in lines[1], len(lines)] == [True, True, 2]


def test_none_keeps_nothing():
    assert none.open({}).close({}) is None


# A client that misbehaves.

BEGUN = {
    "record": 1,
    "key": "ab",
    "name": "trial",
    "status": "failed",
    "choices": {},
    "config": {"bits": 4, "seed": 0},
}
DONE = {
    **BEGUN,
    "status": "done",
    "results": {},
    "seconds": {},
    "layers": [{"name": "a"}],
    "sensitivity": {},
}


def raising(*_, **__):
    raise RuntimeError("no service")


def opened(folder, **changes):
    knobs = {"mode": "offline", "project": "sq", "entity": None, "dir": str(folder), "timeout": 0}
    return tracker.open(BEGUN, **{**knobs, **changes})


@pytest.fixture
def logged(caplog, monkeypatch):
    """Return what sq logs, whatever an earlier run did to its logger."""
    monkeypatch.setattr(logging.getLogger("sq"), "propagate", True)
    caplog.set_level(logging.INFO, "sq")
    return caplog


def test_client_that_raises_does_not_fail_the_run(tmp_path, monkeypatch, logged, capsys):
    monkeypatch.setattr(wandb, "init", raising)
    tracker._report_once.cache_clear()
    for _ in range(2):
        opened(tmp_path).close(DONE)
    assert logged.text.count("W&B could not start: no service") == 2
    said = capsys.readouterr().err
    assert said.count("W&B could not start: no service; runs go on without it") == 1, (
        "once, not for each run of a sweep"
    )
    assert said.count("\n") == 1


def test_full_disk_of_the_mirror_is_one_line(tmp_path, monkeypatch, logged, capfd):
    def full(*_, **__):
        logging.getLogger("wandb.full").error("no room for this line")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "debug.log")

    class Full(logging.Handler):
        def emit(self, line):
            try:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            except OSError:
                self.handleError(line)  # as `logging.FileHandler` does

    monkeypatch.setattr(wandb, "init", full)
    monkeypatch.setattr(logging, "raiseExceptions", True)
    tracker._report_once.cache_clear()
    handler = Full()
    logging.getLogger("wandb.full").addHandler(handler)
    try:
        opened(tmp_path).close(DONE)
    finally:
        logging.getLogger("wandb.full").removeHandler(handler)
    said = capfd.readouterr().err
    assert said.startswith(
        "W&B could not start: No space left on device (debug.log); runs go on without it"
    )
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    ("variables", "settings"),
    [
        ({}, {"mode": "offline", "project": "sq", "entity": None}),
        ({"WANDB_MODE": "disabled"}, {"mode": "disabled"}),
        ({"WANDB_MODE": "online"}, {"mode": "online"}),
        ({"WANDB_MODE": "dryrun"}, {"mode": "offline"}),
        ({"WANDB_MODE": "run"}, {"mode": "online"}),
        ({"WANDB_MODE": "online", "WANDB_DISABLED": "true"}, {"mode": "disabled"}),
        ({"WANDB_DISABLED": "false"}, {"mode": "offline"}),
        ({"WANDB_PROJECT": "p", "WANDB_ENTITY": "me"}, {"project": "p", "entity": "me"}),
        ({"WANDB_DIR": "elsewhere"}, {"dir": "elsewhere"}),
    ],
)
def test_environment_of_the_client_decides_what_is_not_typed(variables, settings, monkeypatch):
    for name in ("MODE", "DISABLED", "PROJECT", "ENTITY", "DIR"):
        monkeypatch.delenv(f"WANDB_{name}", raising=False)
    plain = record.key(compose()[0])
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    config = compose()[0]
    assert config["tracker"].items() >= settings.items()
    assert record.key(config) == plain
    assert (
        compose("tracker.mode=offline", "tracker.project=mine")[0]["tracker"].items()
        >= {
            "mode": "offline",
            "project": "mine",
        }.items()
    ), "what is typed goes first"


def test_mode_of_the_environment_that_there_is_not_is_refused(monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "nonsense")
    monkeypatch.delenv("WANDB_DISABLED", raising=False)
    with pytest.raises(SqError, match=r"tracker\.mode=nonsense: should be"):
        check(compose()[0]["tracker"], "tracker")


def test_client_that_is_not_installed_does_not_fail_the_run(tmp_path, monkeypatch, logged):
    monkeypatch.setitem(sys.modules, "wandb", None)
    opened(tmp_path).close(DONE)
    assert "W&B could not start" in logged.text


def test_folder_that_cannot_be_written_does_not_fail_the_run(tmp_path, logged):
    (tmp_path / "file").write_text("")
    opened(tmp_path / "file" / "below").close(DONE)
    assert "W&B could not start" in logged.text


def test_client_that_hangs_does_not_hold_up_the_run(tmp_path, monkeypatch, logged):
    free, ended = threading.Event(), threading.Event()

    def hang(*_, **__):
        free.wait(60)
        ended.set()
        raise RuntimeError("too late")

    monkeypatch.setattr(wandb, "init", hang)
    start = time.monotonic()
    opened(tmp_path).close(DONE)
    took = time.monotonic() - start
    free.set()
    assert ended.wait(10)
    assert took < 10
    assert "W&B did not start within" in logged.text


@pytest.mark.parametrize("made", [DONE, {**BEGUN, "error": "too hot"}], ids=["done", "failed"])
def test_client_that_raises_at_the_end_does_not_fail_the_run(made, tmp_path, monkeypatch, logged):
    class Run:
        summary: dict = {}  # noqa: RUF012
        log = finish = staticmethod(raising)

    monkeypatch.setattr(wandb, "init", lambda **_: Run())
    opened(tmp_path).close(made)
    assert "W&B could not finish: no service" in logged.text


def test_run_is_finished_even_if_its_figures_cannot_be_sent(tmp_path, monkeypatch, logged):
    codes = []

    class Run:
        summary: dict = {}  # noqa: RUF012
        log = staticmethod(raising)

        def finish(self, exit_code):
            codes.append(exit_code)

    monkeypatch.setattr(wandb, "init", lambda **_: Run())
    opened(tmp_path).close(DONE)
    assert codes == [0]
    assert "no service" in logged.text


def test_run_whose_process_died_is_shown_as_failed_in_log_and_mirror(tmp_path):
    words = ["tracker=wandb", f"tracker.dir={tmp_path / 'mirror'}", "name=trial"]
    config, choices = compose(*settings(tmp_path), *words)
    file = record.path(config)
    with client(tmp_path):
        assert job.record_death(
            Job([], config, choices, record.fingerprint(file)),
            "killed by signal 9",
            "the end of\nits log",
        )
    (seen,) = offline(tmp_path / "mirror")
    assert seen["run"].run_id == run_page.identity("trial", file.stem)
    assert seen["summary"].items() >= {"status": "failed", "error": "killed by signal 9"}.items()
    assert seen["exit"] == 1
    log = (tmp_path / "outputs" / "trial" / f"{file.stem}.log").read_text()
    assert "ERROR failed: killed by signal 9" in log
    assert log.endswith("the end of\nits log\n")


def test_tracker_that_breaks_does_not_cost_the_record_of_a_dead_process(tmp_path, monkeypatch):
    def broken(*_):
        raise RuntimeError("too hot")

    config, choices = compose(*settings(tmp_path))
    file = record.path(config)
    monkeypatch.setattr(none.Tracker, "close", broken)
    assert job.record_death(Job([], config, choices, record.fingerprint(file)), "killed", "")
    assert record.read(file)["error"] == "killed"
    log = (tmp_path / "outputs" / "runs" / f"{file.stem}.log").read_text()
    assert "no page in the tracker: RuntimeError: too hot" in log
