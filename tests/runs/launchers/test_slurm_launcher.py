"""What `hydra/launcher=slurm` says where there is no SLURM, and what it makes of SLURM's answers."""

import os
import subprocess
import time
from types import SimpleNamespace

import pytest
from cli_helpers import CONF, ROOT, call, compose, settings
from omegaconf import OmegaConf
from submitit.core.utils import FailedJobError

from sq.errors import SqError
from sq.records import record, run_locks
from sq.runs.launchers import slurm
from sq.runs.launchers.base import Follower
from sq.runs.sweep import sweeper
from sq.runs.sweep.expand import Job


def test_no_slurm_here(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    done = call(tmp_path, "hydra/launcher=slurm", sweep=True)
    assert done.returncode == 1
    line = done.stderr.splitlines()[-1]
    assert line.startswith(
        "sq: hydra/launcher=slurm: no sbatch, scontrol, sacct, sinfo on this machine"
    )
    assert "hydra/launcher=local" in line


def commands(folder, monkeypatch, **texts):
    """Put shell scripts of these texts in place of SLURM's commands."""
    for name in ("sbatch", "srun", "scontrol", "sacct", "sinfo", "scancel"):
        (folder / name).write_text(f"#!/bin/sh\n{texts.get(name, '')}\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


def test_slurm_without_accounting_is_refused(tmp_path, monkeypatch):
    commands(tmp_path, monkeypatch, sacct="echo 'Slurm accounting storage is disabled' >&2; exit 1")
    done = call(tmp_path, "hydra/launcher=slurm", sweep=True)
    assert done.returncode == 1
    line = done.stderr.splitlines()[-1]
    assert line.startswith(
        "sq: hydra/launcher=slurm: sacct returned an error (Slurm accounting storage is disabled)"
    )
    assert "slurm/array.sbatch" in line


DEFAULTS = OmegaConf.to_container(OmegaConf.load(CONF / "hydra" / "launcher" / "slurm.yaml"))
DEFAULTS = {name: value for name, value in DEFAULTS.items() if name not in ("_target_", "defaults")}
ONCE = "if [ -e {0}/second ]; then echo 'sbatch: error: over the limit' >&2; exit 1; fi; touch {0}/second; "


@pytest.mark.parametrize("withdrawn", [True, False])
def test_of_a_sweep_that_is_refused_in_part_nothing_is_left(withdrawn, tmp_path, monkeypatch):
    texts = {"sbatch": ONCE.format(tmp_path) + "echo Submitted batch job 41", "sinfo": "echo main"}
    texts["scancel"] = f"echo $@ >> {tmp_path}/cancelled; exit {0 if withdrawn else 1}"
    commands(tmp_path, monkeypatch, **texts)
    jobs = [job(tmp_path, seed) for seed in range(3)]
    given = DEFAULTS | {"folder": str(tmp_path / "%j"), "max_array": 2}
    refused = r"SLURM refused the jobs: over the limit; partitions here: main; submitted before"
    with pytest.raises(SqError, match=refused) as caught:
        list(slurm.run(jobs, given))
    assert (tmp_path / "cancelled").read_text() == "41\n"
    assert str(caught.value).endswith(
        "and cancelled: 41" if withdrawn else "still there: end it by scancel 41"
    )


def test_srun_is_told_the_cores_of_a_task(tmp_path, monkeypatch):
    commands(tmp_path, monkeypatch, sbatch=f"cp $1 {tmp_path}/script; echo Submitted batch job 41")
    slurm._submit(
        [[job(tmp_path, 0)]], DEFAULTS | {"folder": str(tmp_path / "%j"), "cpus_per_task": 7}
    )
    (line,) = [
        line for line in (tmp_path / "script").read_text().splitlines() if line.startswith("srun ")
    ]
    assert " --cpus-per-task=7 " in line


def shell(*words, **env):
    given = {"PATH": os.environ["PATH"], **env}
    return subprocess.run(
        ["bash", *words], cwd=ROOT, env=given, capture_output=True, text=True, check=False
    )


def test_scripts_of_a_node_need_no_user_name_and_hand_on_the_cores_of_a_task(tmp_path, monkeypatch):
    commands(tmp_path, monkeypatch, srun='echo "$@"')
    assert shell("-euc", ". slurm/env.sh; echo $MPLCONFIGDIR").stdout == f"/tmp/mpl-{os.getuid()}\n"
    array = {"JOB_ID": "7", "TASK_ID": "5", "TASK_MIN": "4", "TASK_COUNT": "3"}
    env = {"SLURM_SUBMIT_DIR": str(ROOT), "SLURM_CPUS_PER_TASK": "6"}
    done = shell(
        "slurm/array.sbatch",
        "-m",
        "bits=3",
        **env,
        **{f"SLURM_ARRAY_{k}": v for k, v in array.items()},
    )
    assert done.stdout == "--cpus-per-task=6 python run.py -m bits=3 sweep.shard=2/3\n", done.stderr


def test_one_node_leaves_a_slurm_alone_that_is_here(tmp_path, monkeypatch):
    commands(tmp_path, monkeypatch)
    for name, text in (("pgrep", '[ "$2" = slurmctld ]'), ("id", "echo 0")):
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    done = shell("slurm/one_node.sh", "start", str(tmp_path / "slurm"))
    assert done.returncode == 1
    assert done.stderr.startswith("slurm/one_node.sh: slurmctld runs here already")
    assert not (tmp_path / "slurm").exists()


@pytest.mark.parametrize(
    ("state", "over"),
    [
        *[
            (state, False)
            for state in (
                "PENDING",
                "RUNNING",
                "SUSPENDED",
                "CONFIGURING",
                "REQUEUE_HOLD",
                "RESIZING",
            )
        ],
        *[
            (state, True)
            for state in ("COMPLETED", "CANCELLED by 1000", "OUT_OF_MEMORY", "NODE_FAIL", "TIMEOUT")
        ],
    ],
)
def test_what_is_not_known_as_an_end_is_none(state, over, tmp_path, monkeypatch):
    commands(tmp_path, monkeypatch, sacct=f"echo 'JobID|State|NodeList'; cat {tmp_path}/states")
    watcher = slurm._watcher()
    watcher.register_job("7_0")
    (tmp_path / "states").write_text(f"7_0|{state}|n1\n")
    assert watcher.is_done("7_0", mode="force") is over
    (tmp_path / "states").write_text("7_0|FAILED|n1\n")
    time.sleep(0.01)
    assert watcher.is_done("7_0", mode="force"), "it is still asked about"


def test_reason_is_the_last_word_of_sbatch():
    text = "sbatch: error: Batch job submission failed: Invalid partition name specified\n\n"
    assert (
        slurm._reason(FailedJobError(text))
        == "Batch job submission failed: Invalid partition name specified"
    )
    assert slurm._reason(OSError()) == "OSError"


@pytest.mark.parametrize("result", [True, False])
def test_death_of_a_task(tmp_path, result):
    log = tmp_path / "7_1_0_log.err"
    log.write_text("first\n" + "x" * 10_000 + "\nKilled\n")
    paths = SimpleNamespace(result_pickle=tmp_path / "result.pkl", stderr=log)
    task = SimpleNamespace(job_id="7_1", state="OUT_OF_MEMORY", paths=paths, exception=lambda: None)
    if result:
        paths.result_pickle.write_bytes(b"")
        assert slurm._death(task) == ("", "")
        task.exception = lambda: FailedJobError(
            "Job (task=0) failed with trace:\n---\nOSError: disk\n---\nYou can check x\n"
        )
        assert slurm._death(task)[0] == "SLURM job 7_1: OSError: disk"
        return
    cause, trace = slurm._death(task)
    assert cause == f"SLURM job 7_1 ended as OUT_OF_MEMORY and left no result; its log: {log}"
    assert trace.endswith("Killed\n")
    assert len(trace) == slurm.TAIL


class Cluster(Follower):
    """Hands jobs to `slurm.run`."""

    def kinds(self):
        return slurm.Settings

    def run(self, jobs):
        return slurm.run(jobs, {"runs_per_task": len(jobs), "poll_s": 0.01})


@pytest.fixture
def dead(tmp_path, monkeypatch):
    """Stand in for a SLURM whose every task has run out of memory."""

    class Task:
        job_id, state = "7_0", "OUT_OF_MEMORY"
        paths = SimpleNamespace(result_pickle=tmp_path / "none", stderr=tmp_path / "none")

        def done(self, force_check):
            return True

    monkeypatch.setattr(slurm, "_require", lambda: None)
    monkeypatch.setattr(slurm, "_submit", lambda parts, _: [Task() for _ in parts])


def job(folder, seed):
    config, choices = compose(*settings(folder), f"seed={seed}")
    one = Job([f"seed={seed}"], config, choices)
    return Job([f"seed={seed}"], config, choices, record.fingerprint(one.file))


def test_only_the_run_that_a_dead_task_was_doing_has_failed(tmp_path, dead, monkeypatch, capsys):
    done, doing, left, others = (job(tmp_path, seed) for seed in range(4))
    made = {
        "record": record.VERSION,
        "status": "done",
        "results": {"relative_error": 0.1, "drop": 0.2},
    }
    record.write(done.file, made | {"seconds": {"all": 3.0}})
    for one, task in ((doing, "7_0"), (others, "7_1")):
        monkeypatch.setattr(
            run_locks,
            "_this_process",
            lambda task=task: {"host": "", "machine": "x", "pid": 1, "job": task},
        )
        assert run_locks.acquire(one.file)
    monkeypatch.setattr(run_locks, "is_alive", lambda who: False)  # their processes are gone
    before = {one.file: record.fingerprint(one.file) for one in (done, left, others)}
    sweeper._follow([done, doing, left, others], ["a", "b", "c", "d"], Cluster())
    assert record.read(doing.file)["error"].startswith("SLURM job 7_0 ended as OUT_OF_MEMORY")
    assert {file: record.fingerprint(file) for file in before} == before
    said = capsys.readouterr().err.splitlines()
    assert said[1] == "a: relative error 0.10000, drop 0.2, 3.0 s"
    assert said[2].startswith("b: failed: SLURM job 7_0 ended as OUT_OF_MEMORY")
    assert [line.partition("; its log")[0] for line in said[3:]] == [
        f"{words}: not done: SLURM job 7_0 ended as OUT_OF_MEMORY and left no result"
        for words in "cd"
    ]
