"""What `hydra/launcher=slurm` says where there is no SLURM, and what it makes of SLURM's answers."""

from types import SimpleNamespace

import pytest
from cli_helpers import call, compose, error_line, settings
from submitit.core.utils import FailedJobError

from sq import claim, cluster, record, sweep
from sq.launch import Follower
from sq.points import Job


def test_no_slurm_here(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    done = call(tmp_path, "hydra/launcher=slurm", sweep=True)
    assert done.returncode == 1
    line = done.stderr.splitlines()[-1]
    assert line.startswith("sq: hydra/launcher=slurm: no sbatch, scontrol, sacct, sinfo on this machine")
    assert "hydra/launcher=local" in line


def test_unknown_setting_of_the_launcher(tmp_path):
    done = call(tmp_path, "hydra/launcher=slurm", "hydra.launcher.partitoin=gpu", sweep=True)
    assert "hydra.launcher.partitoin" in error_line(done)


def test_reason_is_the_last_word_of_sbatch():
    text = "sbatch: error: Batch job submission failed: Invalid partition name specified\n\n"
    assert cluster._reason(FailedJobError(text)) == "Batch job submission failed: Invalid partition name specified"
    assert cluster._reason(OSError()) == "OSError"


@pytest.mark.parametrize("result", [True, False])
def test_death_of_a_task(tmp_path, result):
    log = tmp_path / "7_1_0_log.err"
    log.write_text("first\n" + "x" * 10_000 + "\nKilled\n")
    paths = SimpleNamespace(result_pickle=tmp_path / "result.pkl", stderr=log)
    task = SimpleNamespace(job_id="7_1", state="OUT_OF_MEMORY", paths=paths, exception=lambda: None)
    if result:
        paths.result_pickle.write_bytes(b"")
        assert cluster._death(task) == ("", "")
        task.exception = lambda: FailedJobError(
            "Job (task=0) failed with trace:\n---\nOSError: disk\n---\nYou can check x\n"
        )
        assert cluster._death(task)[0] == "SLURM job 7_1: OSError: disk"
        return
    cause, trace = cluster._death(task)
    assert cause == f"SLURM job 7_1 ended as OUT_OF_MEMORY and left no result; its log: {log}"
    assert trace.endswith("Killed\n")
    assert len(trace) == cluster.TAIL


class Cluster(Follower):
    """Hands jobs to `cluster.run` with the default settings."""

    def run(self, jobs):
        return cluster.run(jobs, {"runs_per_task": len(jobs), "poll_s": 0.01})


@pytest.fixture
def dead(tmp_path, monkeypatch):
    """Stand in for a SLURM whose every task has run out of memory."""

    class Task:
        job_id, state = "7_0", "OUT_OF_MEMORY"
        paths = SimpleNamespace(result_pickle=tmp_path / "none", stderr=tmp_path / "none")

        def done(self, force_check):
            return True

    monkeypatch.setattr(cluster, "_require", lambda _: None)
    monkeypatch.setattr(cluster, "_submit", lambda parts, _: [Task() for _ in parts])


def job(folder, seed):
    config, choices = compose(*settings(folder), f"seed={seed}")
    one = Job([f"seed={seed}"], config, choices)
    return Job([f"seed={seed}"], config, choices, record.mark(one.file))


def test_only_the_run_that_a_dead_task_was_doing_has_failed(tmp_path, dead, monkeypatch, capsys):
    done, doing, left, others = (job(tmp_path, seed) for seed in range(4))
    made = {"record": record.VERSION, "status": "done", "results": {"relative_error": 0.1, "drop": 0.2}}
    record.write(done.file, made | {"seconds": {"all": 3.0}})
    for one, task in ((doing, "7_0"), (others, "7_1")):
        monkeypatch.setattr(claim, "_me", lambda task=task: {"host": "", "machine": "x", "pid": 1, "job": task})
        assert claim.take(one.file)
    monkeypatch.setattr(claim, "alive", lambda who: False)  # their processes are gone
    before = {one.file: record.mark(one.file) for one in (done, left, others)}
    sweep._follow([done, doing, left, others], ["a", "b", "c", "d"], Cluster())
    assert record.read(doing.file)["error"].startswith("SLURM job 7_0 ended as OUT_OF_MEMORY")
    assert {file: record.mark(file) for file in before} == before
    said = capsys.readouterr().err.splitlines()
    assert said[1] == "a: relative error 0.10000, drop 0.2, 3.0 s"
    assert said[2].startswith("b: failed: SLURM job 7_0 ended as OUT_OF_MEMORY")
    assert [line.partition("; its log")[0] for line in said[3:]] == [
        f"{words}: not done: SLURM job 7_0 ended as OUT_OF_MEMORY and left no result" for words in "cd"
    ]
