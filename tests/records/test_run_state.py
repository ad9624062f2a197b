"""How a run stands, and that all who count runs count one that could not be repeated alike."""

import pytest
from cli_helpers import call, compose, settings, snapshot

from sq.records import record, run_state
from sq.runs.sweep import plan, sweeper
from sq.runs.sweep.expand import Job
from sq.tracker import experiment_pages


def write(file, status, **more):
    record.write(file, {"record": record.VERSION, "key": file.stem, "status": status, **more})


@pytest.mark.parametrize(
    ("status", "repeat", "state", "cause"),
    [
        (None, None, "new", ""),
        ("done", None, "done", ""),
        ("failed", None, "failed", "too hot"),
        ("failed", "failed", "failed", "too hot"),
        ("done", "failed", "done", "repeating it failed: too cold"),
    ],
)
def test_states_and_causes(status, repeat, state, cause, tmp_path):
    file = tmp_path / "0123.json"
    if status:
        write(file, status, error="too hot")
    if repeat:
        write(record.failed_rerun(file), repeat, error="too cold")
    found = run_state.find(file)
    assert (found.state, found.cause.partition(" (")[0]) == (state, cause)
    assert (found.record is None) == (status is None)
    assert (found.repeat is not None) == (state == "done" and bool(cause))
    if found.repeat:
        assert str(record.failed_rerun(file)) in found.cause, "what to delete"
        assert "rerun=true" in found.cause


@pytest.mark.parametrize(
    "where", [lambda file: file, record.failed_rerun], ids=["record", "repetition"]
)
def test_damage_is_told_whichever_file_has_it(where, tmp_path):
    file = tmp_path / "0123.json"
    write(file, "done")
    where(file).parent.mkdir(exist_ok=True)
    where(file).write_text("{")
    found = run_state.find(file)
    assert found.state == "damaged"
    assert found.record is None
    assert f"{where(file)} is not a whole record" in found.cause


@pytest.fixture(scope="module")
def repeated(tmp_path_factory):
    """Return a folder with two runs that are done, one of which could not be repeated, and the jobs of both."""
    folder = tmp_path_factory.mktemp("repeated")
    assert call(folder, "bits=3,4", sweep=True).returncode == 0
    jobs = [Job([f"bits={bits}"], *compose(*settings(folder), f"bits={bits}")) for bits in (3, 4)]
    whole = record.read(jobs[0].file)
    failed = {name: whole[name] for name in ("record", "key", "name", "choices", "config")} | {
        "status": "failed"
    }
    record.save(jobs[0].file, failed | {"error": "too hot"}, keep_done=True)
    return folder, jobs


def test_all_count_it_as_done_and_say_that_it_could_not_be_repeated(repeated):
    folder, jobs = repeated
    known = plan.ExistingRuns(jobs)
    runs = [known.state(one) for one in jobs]
    assert [run.state for run in runs] == ["done", "done"]
    assert [bool(run.cause) for run in runs] == [True, False]
    assert plan.forecast(runs, [], known) == "2 runs, 2 done, 0 to do"
    records, failures = sweeper.collect(jobs)
    assert records.keys() == {one.file for one in jobs}
    assert failures.keys() == {jobs[0].file}
    page = experiment_pages.read(folder / "results" / "runs").summary()
    told = {
        name: page.summary[name] for name in ("status", "runs", "done", "failed", "not_repeated")
    }
    assert told == {"status": "done", "runs": 2, "done": 2, "failed": 0, "not_repeated": 1}
    assert page.exit_code == 0


def test_a_later_sweep_ends_well_and_says_how_to_settle_it(repeated):
    folder, jobs = repeated
    before = snapshot(folder / "results")
    done = call(folder, "bits=3,4", sweep=True)
    assert done.returncode == 0, done.stderr
    assert snapshot(folder / "results") == before
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("not repeated: ")]
    assert f" bits=3 ({jobs[0].file.stem}): repeating it failed: too hot (" in line
    assert str(record.failed_rerun(jobs[0].file)) in line
    assert "2 of 2 runs done, 0 failed, 1 could not be repeated; records in" in done.stderr
    done = call(folder, "bits=3,4", "rerun=true", sweep=True)
    assert done.returncode == 0, done.stderr
    assert not record.failed_rerun(jobs[0].file).exists()
    assert "2 of 2 runs done, 0 failed; records in" in done.stderr
