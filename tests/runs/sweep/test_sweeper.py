"""Sweeps: one failure stops nothing, the same command goes on where it stopped, nothing runs twice."""

import json
import os
import shutil
import signal
import subprocess
import time

import processes
import pytest
from cli_helpers import (
    PATIENCE,
    WEIGHTS,
    call,
    command,
    compose,
    environment,
    run,
    settings,
    snapshot,
)

from sq.records import record
from sq.runs.sweep import plan, sweeper
from sq.runs.sweep.expand import Job
from sq.runs.sweep.plan import ExistingRuns

POINTS = "calibration.images=32,100000,48"


def records(folder):
    return {
        r["config"]["calibration"]["images"]: r
        for r in record.read_all(folder / "results" / "runs")
    }


@pytest.fixture(scope="module")
def one_failing(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sweep")
    return folder, run(folder, POINTS, sweep=True)


def test_one_failing_point_leaves_the_others_alone(one_failing):
    folder, done = one_failing
    assert done.returncode == 1
    made = records(folder)
    assert {images: r["status"] for images, r in made.items()} == {
        32: "done",
        48: "done",
        100000: "failed",
    }
    cause = "calibration.images=100000: allowed are 1 to 1201, the size of the training split"
    failures = [line for line in done.stderr.splitlines() if line.startswith("failed: ")]
    assert len(failures) == 1
    assert made[100000]["key"] in failures[0]
    assert failures[0].endswith(cause)
    assert "2 of 3 runs done, 1 failed" in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout.count("│ rtn") == 2


def test_failed_record_says_what_happened(one_failing):
    folder, _ = one_failing
    failed = records(folder)[100000]
    assert failed["error"].startswith("calibration.images=100000")
    assert failed["traceback"].startswith("Traceback")
    assert "sq.errors.SqError" in failed["traceback"]
    log = (folder / "outputs" / "runs" / f"{failed['key']}.log").read_text()
    assert "Traceback" in log
    assert failed["error"] in log


def test_same_command_retries_the_failed_point_alone(one_failing):
    folder, _ = one_failing
    before, failed = snapshot(folder / "results"), records(folder)[100000]["key"]
    done = run(folder, POINTS, sweep=True)
    after = snapshot(folder / "results")
    assert done.returncode == 1
    assert "3 runs, 2 done, 1 to do" in done.stderr
    assert {name for name in after if after[name] != before[name]} == {f"runs/{failed}.json"}


def test_finished_sweep_runs_nothing_and_prints_its_table(one_failing):
    folder, first = one_failing
    before = snapshot(folder / "results")
    done = run(folder, "calibration.images=32,48", sweep=True)
    assert done.returncode == 0
    assert "2 runs, 2 done, 0 to do" in done.stderr
    assert done.stdout == first.stdout
    assert snapshot(folder / "results") == before


def test_point_named_twice_counts_once(one_failing):
    folder, _ = one_failing
    done = call(folder, "bits=4,4", sweep=True)
    assert done.returncode == 0
    assert done.stdout.count("│ rtn") == 1
    assert "+-" not in done.stdout, "one run has no spread"


def test_damaged_record_fails_its_point_and_stays(one_failing, tmp_path):
    folder, _ = one_failing
    shutil.copytree(folder / "results", tmp_path / "results")
    damaged = tmp_path / "results" / "runs" / f"{records(folder)[48]['key']}.json"
    damaged.write_bytes(damaged.read_bytes()[:1000])
    before = snapshot(tmp_path / "results")
    done = call(tmp_path, "calibration.images=32,48", sweep=True)
    assert done.returncode == 1
    assert done.stdout.count("│ rtn") == 1
    assert str(damaged) in next(
        line for line in done.stderr.splitlines() if line.startswith("failed: ")
    )
    assert snapshot(tmp_path / "results") == before


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["bits=0,4"], ["bits=0: allowed are 1 to 16", "nothing was run"]),
        (["bits=0,4,99"], ["bits=0: allowed", "bits=99: allowed"]),
        (["quantizer=sensiqant,obq"], ["quantizer=sensiqant", "nearest: sensiquant"]),
        (["bits=abc,4"], ["bits=abc"]),
        (
            ["quantizer=gptq", "quantizer.solve.ordr=a,b"],
            ["quantizer.solve.ordr:", "nearest: quantizer.solve.order"],
        ),
        (["quantizer=glob(x*)"], ["quantizer=glob(x*)", "no run"]),
        (["quantizer=rtn,gptq", "quantizer.solve.order=act"], ["no such setting of quantizer=rtn"]),
        (["bits=null,4"], ["bits=null: should be a number; it may not be null"]),
        (["bits=interval(2,4)"], ["bits=interval(2,4)", "range(START,STOP,STEP)"]),
        (["hydra/sweeper=optuna", "bits=3,4"], ["hydra/sweeper=optuna", "(all: basic)"]),
        (
            ["hydra/launcher=basic,local", "bits=3,4"],
            ["hydra/launcher=basic,local", "give one value"],
        ),
        (["bits=3", "bits=4,5"], ["bits is given twice (bits=3 and bits=4,5): keep one"]),
    ],
)
def test_sweep_with_a_senseless_point_is_refused_before_anything_runs(words, expected, tmp_path):
    done = run(tmp_path, *words, sweep=True)
    assert done.returncode != 0
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert done.stderr.startswith("sq: ")
    assert all(part in done.stderr for part in expected), done.stderr
    assert snapshot(tmp_path / "results") == {}


def test_sweep_into_a_folder_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "results").write_text("precious")
    done = run(tmp_path, "bits=3,4", sweep=True)
    assert done.returncode != 0
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert "results=" in done.stderr
    assert (tmp_path / "results").read_text() == "precious"


def test_finished_sweep_needs_no_place_to_write(one_failing, monkeypatch):
    folder, _ = one_failing
    monkeypatch.setattr(
        record, "probe", lambda folder: pytest.fail("a read-only disk would be refused")
    )
    assert call(folder, "calibration.images=32,48", sweep=True).returncode == 0


def test_failed_rerun_in_a_sweep_is_a_failure_and_keeps_the_record(tmp_path):
    file = tmp_path / "weights.safetensors"
    file.write_bytes(WEIGHTS.read_bytes())
    assert call(tmp_path, f"model.weights={file}", sweep=True).returncode == 0
    before = snapshot(tmp_path / "results")
    file.write_bytes(WEIGHTS.read_bytes()[:1000])
    done = call(tmp_path, f"model.weights={file}", "rerun=true", sweep=True)
    after = snapshot(tmp_path / "results")
    assert {name: after[name] for name in before} == before
    assert done.returncode == 1
    assert any(
        line.startswith("not repeated: ") and str(file) in line for line in done.stderr.splitlines()
    ), done.stderr


def test_point_that_is_not_a_number_is_named(tmp_path):
    done = call(tmp_path, "quantizer.damp=nan,0.02", sweep=True)
    assert done.returncode == 1
    assert "JSON" not in done.stderr, done.stderr
    assert "Traceback" not in done.stderr
    if done.stdout:  # refused as a whole, or failed alone
        assert "1 of 2 runs done, 1 failed" in done.stderr
    assert "quantizer.damp=nan: should be a finite number" in done.stderr


def test_kill_in_the_middle_and_the_same_command_goes_on(tmp_path):
    words = "calibration.images=32,200,300"
    folder = tmp_path / "results" / "runs"
    with processes.Popen(
        command(tmp_path, words, sweep=True),
        cwd=tmp_path,
        env=environment(tmp_path),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    ) as sweeping:
        until = time.monotonic() + PATIENCE
        while not list(folder.glob("*.json")):
            assert sweeping.poll() is None, "the sweep ended without a record"
            assert time.monotonic() < until
            time.sleep(0.005)
        os.killpg(sweeping.pid, signal.SIGKILL)
    before = snapshot(tmp_path / "results")
    assert 1 <= len(before) < 3
    assert all(r["status"] == "done" for r in record.read_all(folder))
    (folder / ".0123456789abcdef.1.part").write_text('{"record": 1, "sta')  # a kill may leave these
    (folder / ".probe.1").write_text("")
    done = run(tmp_path, words, sweep=True)
    assert done.returncode == 0, done.stderr
    assert f"3 runs, {len(before)} done" in done.stderr
    after = snapshot(tmp_path / "results")
    assert len(after) == 3
    assert {name: after[name] for name in before} == before
    assert set(records(tmp_path)) == {32, 200, 300}


def fake_job(folder, seed, seconds=None, error=None):
    config, choices = compose(*settings(folder), f"seed={seed}")
    file = record.path(config)
    if seconds is not None:
        made = {"status": "done", "seconds": {"load": 1.0, "quantize": seconds - 1.0}}
    elif error is not None:
        made = {"status": "failed", "error": error}
    if seconds is not None or error is not None:
        record.write(file, {"record": record.VERSION, "key": file.stem, "choices": choices, **made})
    return Job([f"seed={seed}"], config, choices)


def forecast(jobs, retry="failed"):
    known = ExistingRuns(jobs)
    runs = [known.state(job) for job in jobs]
    return plan.forecast(runs, plan.chosen(runs, retry), known)


def test_forecast_is_the_mean_of_earlier_records_of_the_same_kind(tmp_path):
    jobs = [
        fake_job(tmp_path, 0, 4.0),
        fake_job(tmp_path, 1, 8.0),
        fake_job(tmp_path, 2),
        fake_job(tmp_path, 3),
    ]
    assert (
        forecast(jobs)
        == "4 runs, 2 done, 2 to do, about 12 s one after the other by earlier records"
    )
    assert forecast(jobs[:2]) == "2 runs, 2 done, 0 to do"
    other = Job(
        ["quantizer=obq"], {**jobs[0].config, "seed": 9}, {**jobs[0].choices, "quantizer": "obq"}
    )
    assert forecast([*jobs, other]).endswith(
        "about 12 s one after the other by earlier records, 1 of them unknown"
    )


def test_forecast_without_earlier_records(tmp_path):
    assert "no earlier record" in forecast([fake_job(tmp_path, 0)])


def test_forecast_counts_done_runs_that_are_asked_for_again(tmp_path):
    job = fake_job(tmp_path, 0, 4.0)
    again = Job(job.overrides, {**job.config, "rerun": True}, job.choices)
    assert forecast([again]) == "1 run, 0 done, 1 to do, about 4 s by earlier records"


def test_collect_tells_what_became_of_each_job(tmp_path):
    jobs = [
        fake_job(tmp_path, 0, 4.0),
        fake_job(tmp_path, 1, error="too hot"),
        fake_job(tmp_path, 2),
    ]
    found, failures = sweeper.collect(jobs)
    assert [*found] == [record.path(jobs[0].config)]
    hot, lost = failures.values()
    assert hot.startswith("seed=1 (")
    assert hot.endswith("too hot")
    assert lost.startswith("seed=2 (")
    assert "no record" in lost


def test_records_are_plain_json(one_failing):
    folder, _ = one_failing
    # and calibration/
    assert {file.suffix for file in (folder / "results" / "runs").iterdir()} == {".json", ""}
    for file in (folder / "results" / "runs").glob("*.json"):
        text = file.read_text()
        assert text == json.dumps(json.loads(text), indent=1) + "\n"
