"""What `hydra/launcher=slurm` says where there is no SLURM, and what it makes of SLURM's answers."""

from types import SimpleNamespace

import pytest
from cli_helpers import call, error_line
from submitit.core.utils import FailedJobError

from sq import cluster


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
