import subprocess
import sys

import pytest
from cli_helpers import ROOT, as_it_was

from sq import claim, record, status


@pytest.fixture(scope="module")
def jobs(tmp_path_factory):
    results = tmp_path_factory.mktemp("results")
    with as_it_was():
        return status.expected("quickstart", results)[0], results


def write(job, state, **more):
    file = record.path(job.config)
    made = {"record": record.VERSION, "key": file.stem, "choices": job.choices, "status": state, "seconds": {"a": 2.0}}
    record.write(file, made | more)


def test_done_running_failed_and_missing(jobs, capsys):
    every, results = jobs
    assert len(every) == 45
    for job in every[3:]:
        write(job, "done")
    write(every[0], "failed", error="too hot")
    record.write(results / "quickstart" / "0123456789abcdef.json", {"record": record.VERSION, "status": "done"})
    held = claim.take(record.path(every[1].config))
    code = status.main(["quickstart", "--results", str(results)])
    held.release()
    said = capsys.readouterr()
    assert code == 1
    assert "quickstart: 45 runs of quickstart: 42 done, 1 running, 1 failed, 0 damaged, 1 missing" in said.err
    assert "the rest takes about 6 s one after the other" in said.err
    assert "quickstart: 1 records beside, of other settings" in said.err
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
    done = subprocess.run(
        [sys.executable, "-m", "sq.status", "quickstar"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert "nearest: quickstart" in done.stderr
