import json
import sys

import processes
import pytest
from cli_helpers import ROOT, as_it_was, compose, settings

from sq.records import record, run_locks
from sq.runs import status
from sq.runs.sweep.expand import Job


@pytest.fixture(scope="module")
def jobs(tmp_path_factory):
    results = tmp_path_factory.mktemp("results")
    with as_it_was():
        return status.expected("quickstart", results)[0], results


def write(job, state, **more):
    file = record.path(job.config)
    made = {
        "record": record.VERSION,
        "key": file.stem,
        "choices": job.choices,
        "status": state,
        "seconds": {"a": 2.0},
    }
    record.write(file, made | more)


def test_done_running_failed_and_missing(jobs, capsys):
    every, results = jobs
    assert len(every) == 45
    for job in every[3:]:
        write(job, "done")
    write(every[0], "failed", error="too hot")
    record.write(
        results / "quickstart" / "0123456789abcdef.json",
        {"record": record.VERSION, "status": "done"},
    )
    held = run_locks.acquire(record.path(every[1].config))
    code = status.main(["quickstart", "--results", str(results)])
    held.release()
    said = capsys.readouterr()
    assert code == 1
    assert (
        "quickstart: 45 runs of quickstart: 42 done, 1 running, 1 failed, 0 damaged, 1 missing"
        in said.err
    )
    assert "the rest takes about 6 s one after the other" in said.err
    assert "quickstart: 1 record beside, of other settings" in said.err
    lines = [line for line in said.out.splitlines() if "seed=" in line]
    assert ["failed" in lines[0], "running" in lines[1], "missing" in lines[2]] == [True] * 3
    assert "too hot" in lines[0]
    assert len(lines) == 3


def test_all_done(jobs, capsys):
    every, results = jobs
    for job in every:
        write(job, "done")
    assert status.main(["quickstart", "--results", str(results)]) == 0
    said = capsys.readouterr()
    assert said.out == ""
    assert "45 done" in said.err


def test_parts_of_an_experiment_are_one(capsys):
    jobs, parts = status.expected("cifar10", ROOT / "results")
    assert parts == ["cifar10", "cifar10_activations"]
    assert len(jobs) == 150


def test_no_such_experiment_is_one_line():
    done = processes.run(
        [sys.executable, "-m", "sq", "status", "quickstar"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert "nearest: quickstart" in done.stderr


def test_folder_without_a_question(tmp_path, capsys):
    def told():
        code = status.main(["runs", "--results", str(tmp_path / "results")])
        return code, capsys.readouterr()

    jobs = []
    for seed in range(4):
        config, choices = compose(*settings(tmp_path), f"seed={seed}")
        jobs.append(Job([], config, choices))
    folder = jobs[0].file.parent
    code, said = told()
    assert code == 1
    assert said.err.startswith("sq: no experiment runs in ")
    folder.mkdir(parents=True)
    code, said = told()
    assert code == 1
    assert "holds no record and no lock" in said.err
    for job in jobs[:2]:
        write(job, "done", config=job.config)
    assert told()[0] == 0
    write(jobs[1], "failed", config=jobs[1].config, error="too hot [/x]")
    (folder / "0123456789abcdef.json").write_text("{")
    held = run_locks.acquire(jobs[2].file)
    (folder / "claims" / f"{jobs[3].file.stem}.1").write_text(
        json.dumps(held.holder | {"pid": 999999999})
    )
    code, said = told()
    held.release()
    assert code == 1
    assert (
        "runs: 5 runs: 1 done, 1 running, 1 failed, 1 damaged, 1 ended; no experiment has this name"
        in said.err
    )
    lines = {
        line.split("│")[3].strip(): line for line in said.out.splitlines() if line.count("│") == 5
    }
    assert jobs[0].file.stem not in lines
    assert "digits_resnet rtn 4 bits seed 1" in lines[jobs[1].file.stem]
    assert "too hot [/x]" in lines[jobs[1].file.stem]
    assert "running" in lines[jobs[2].file.stem]
    assert "which is gone" in "".join(said.out.split()).replace("whichisgone", "which is gone")
    assert "damaged" in lines["0123456789abcdef"]


def test_folder_of_a_benchmark(tmp_path, capsys):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "bench.json").write_text("{}")
    assert status.main(["mine", "--results", str(tmp_path)]) == 1
    assert "holds a benchmark" in capsys.readouterr().err
