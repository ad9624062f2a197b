"""Runs on a SLURM cluster, through submitit: tasks of job arrays, followed from the login node.

A task whose time runs out, or that is preempted, is queued again: its runs that are done are not
run again. One that dies (killed, out of memory, its node lost) leaves no record, so its end is told
by SLURM's accounting: the run it died in has failed, those it had not come to are still missing.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Generator, Iterable, Sequence
from pathlib import Path
from typing import Any, TypedDict

from sq.config.constraints import Count, Positive, Whole
from sq.core import installation, plugins
from sq.core.progress import say
from sq.core.wording import quantity
from sq.errors import SqError
from sq.records import run_locks
from sq.runs.launchers.base import TAIL, Ended
from sq.runs.sweep.expand import Job

COMMANDS = ("sbatch", "scontrol", "sacct", "sinfo")
# settings that are not sbatch's
OWN = ("folder", "requeues", "runs_per_task", "max_array", "poll_s")
# States that are a task's end. Others pass, and new ones may come with new releases of SLURM.
ENDS = {
    "BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "LAUNCH_FAILED", "NODE_FAIL", "OUT_OF_MEMORY",
    "REVOKED", "TIMEOUT",
}  # fmt: skip
# that submitit names for any cluster
SHARED = ("name", "timeout_min", "cpus_per_task", "gpus_per_node", "mem_gb")


class Settings(TypedDict):
    """Types of ``conf/hydra/launcher/slurm.yaml``."""

    folder: str
    name: str
    partition: str | None
    account: str | None
    qos: str | None
    constraint: str | None
    exclude: str | None
    timeout_min: Count
    cpus_per_task: Count
    gpus_per_node: Count | None
    mem_gb: Positive | None
    array_parallelism: Count
    runs_per_task: Count
    max_array: Count
    requeues: Whole
    signal_delay_s: Whole
    setup: list[str] | None
    additional_parameters: dict[str, Any]
    poll_s: Positive


class Task:
    """What a task does: its runs, one after the other. submitit pickles it by name, and its jobs as plain data.

    It allows the plugins that the command allowed: clusters may be set up not to hand the
    environment on.
    """

    def __init__(self) -> None:
        self.plugins = list(plugins.allowed())

    def __call__(self, jobs: Sequence[Job]) -> None:
        """Run `jobs`; those that another launcher is running are waited for."""
        from sq.runs.sweep import sweeper

        plugins.allow(self.plugins)
        os.environ.setdefault("OMP_NUM_THREADS", os.environ.get("SLURM_CPUS_PER_TASK", "1"))
        for one in jobs:
            say(" ".join(one.overrides))
            sweeper.finish(one)

    def checkpoint(self, jobs: Sequence[Job]) -> Any:
        """Return what the task does when it is queued again: the same, of which it finds a part done."""
        import submitit

        return submitit.helpers.DelayedSubmission(self, jobs)


def run(jobs: list[Job], settings: Settings) -> Generator[Ended, None, None]:
    """Submit `jobs` with the `settings` of ``conf/hydra/launcher/slurm.yaml``; yield each one's end.

    Raises
    ------
    SqError : no SLURM here, or it refuses the jobs
    """
    _require()
    each = settings["runs_per_task"]
    parts = [range(first, min(first + each, len(jobs))) for first in range(0, len(jobs), each)]
    tasks = dict(
        zip(_submit([[jobs[i] for i in part] for part in parts], settings), parts, strict=True)
    )
    arrays = _arrays(tasks)
    say(
        f"{quantity(tasks, 'task')} of SLURM job {', '.join(arrays)}; scancel {' '.join(arrays)} ends them"
    )
    looked = 0.0
    while tasks:
        # One call of sacct tells of all tasks; files that tell of a task's end are looked at in
        # between.
        due = time.monotonic() - looked > settings["poll_s"]
        for number, task in enumerate(list(tasks)):
            if task.done(force_check=due and number == 0):
                part = tasks.pop(task)
                cause, trace = _death(task)
                for run_number in part:
                    yield Ended(
                        run_number, cause, trace, not cause or _begun(jobs[run_number], task.job_id)
                    )
        looked = time.monotonic() if due else looked
        time.sleep(min(1.0, settings["poll_s"]))


def _require() -> None:
    """Make sure that there is a SLURM to submit to, and that it will tell what became of tasks."""
    try:
        import submitit  # noqa: F401
    except ImportError as error:
        raise SqError(
            f"hydra/launcher=slurm needs submitit: {installation.command('slurm')}"
        ) from error
    if missing := [name for name in COMMANDS if shutil.which(name) is None]:
        raise SqError(
            f"hydra/launcher=slurm: no {', '.join(missing)} on this machine; run it on a login node of the cluster "
            "(slurm/README.md), or use hydra/launcher=local"
        )
    # Without accounting nobody would tell that a task has died, and it would be waited for without
    # an end.
    probe = subprocess.run(
        ["sacct", "-n", "-X", "-o", "JobID"], capture_output=True, text=True, check=False
    )
    if probe.returncode:
        raise SqError(
            f"hydra/launcher=slurm: sacct tells nothing ({_reason_of(probe)}), and this launcher learns from it how "
            "tasks end; run the sweep by slurm/array.sbatch, which needs no accounting (slurm/README.md)"
        )


def _submit(parts: list[list[Job]], settings: Settings) -> list[Any]:
    """Return a submitit job for each of `parts`, in arrays of at most `max_array` tasks; all of them, or none."""
    import submitit

    submitit.SlurmJob.watcher = _watcher()  # of all jobs from here on
    executor = submitit.AutoExecutor(
        folder=settings["folder"], cluster="slurm", slurm_max_num_timeout=settings["requeues"]
    )
    given = {
        name: value
        for name, value in settings.items()
        if name not in OWN and value not in (None, {}, [])
    }
    # srun does not take over the cores of a task since SLURM 22.05: a step would have one.
    given["srun_args"] = [f"--cpus-per-task={settings['cpus_per_task']}"]
    most = settings["max_array"]
    tasks: list[Any] = []
    try:
        executor.update_parameters(
            **{n if n in SHARED else f"slurm_{n}": value for n, value in given.items()}
        )
        for first in range(0, len(parts), most):
            tasks += executor.map_array(Task(), parts[first : first + most])
    except (submitit.core.utils.FailedJobError, subprocess.SubprocessError, OSError) as error:
        refused = f"SLURM refused the jobs: {_reason(error)}; {_partitions()}"
        raise SqError(refused + _withdrawn(_arrays(tasks))) from error
    return tasks


def _watcher() -> Any:
    """Return what asks SLURM for states; submitit's own takes all it does not know for ends, even SUSPENDED."""
    from submitit.slurm.slurm import SlurmInfoWatcher

    class Watcher(SlurmInfoWatcher):
        def is_done(self, job_id: str, mode: str = "standard") -> bool:
            # "CANCELLED by 1000"
            return self.get_state(job_id, mode=mode).upper().partition(" ")[0] in ENDS

    return Watcher(delay_s=600)  # seconds; `run` asks more often


def _arrays(tasks: Iterable[Any]) -> list[str]:
    """Return the numbers of the job arrays that `tasks` are in."""
    return sorted({task.job_id.split("_")[0] for task in tasks}, key=int)


def _withdrawn(arrays: list[str]) -> str:
    """Cancel job `arrays` of a sweep that is not submitted in whole; return words on what became of them."""
    if not arrays:
        return ""
    names = " ".join(arrays)
    try:
        subprocess.run(["scancel", *arrays], capture_output=True, check=True)
    except (subprocess.SubprocessError, OSError):
        return f"; submitted before and still there: end it by scancel {names}"
    return f"; submitted before and cancelled: {names}"


def _reason(error: Exception) -> str:
    """Return sbatch's last word."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1].removeprefix("sbatch: error: ").rstrip(".") if lines else type(error).__name__


def _partitions() -> str:
    found = subprocess.run(["sinfo", "-h", "-o", "%R"], capture_output=True, text=True, check=False)
    names = sorted(set(found.stdout.split()))
    return (
        f"partitions here: {', '.join(names)}"
        if names
        else f"and sinfo knows no partition: {_reason_of(found)}"
    )


def _reason_of(done: subprocess.CompletedProcess) -> str:
    return " ".join(done.stderr.split()) or f"exit code {done.returncode}"


def _begun(one: Job, task: str) -> bool:
    """Return whether job `one` was being done by `task` when that died: then its claim is still there."""
    who = run_locks.last_holder(one.file)
    return who is not None and who.get("job") == task


def _death(task: Any) -> tuple[str, str]:
    """Return what SLURM says that `task` died of, and the end of its log; "" if it came to its end."""
    if task.paths.result_pickle.exists():
        error = task.exception()
        return (
            ("", "")
            if error is None
            else (f"SLURM job {task.job_id}: {_last(str(error))}", str(error)[-TAIL:])
        )
    log: Path = task.paths.stderr
    trace = log.read_text(errors="replace")[-TAIL:] if log.is_file() else ""
    return (
        f"SLURM job {task.job_id} ended as {task.state} and left no result; its log: {log}",
        trace,
    )


def _last(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip(" -")]
    inner = [
        line for line in lines if not line.startswith(("You can check", "or at paths", "  - "))
    ]
    return (inner or lines or ["failed"])[-1].strip()
