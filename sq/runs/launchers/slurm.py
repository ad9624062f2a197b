"""Run jobs on a SLURM cluster by submitit: tasks of job arrays, followed from the login node.

A task that reaches its time limit, or is preempted, is queued again, and skips its runs that are
done. A task that dies (killed, out of memory, its node lost) writes no record, so its end is read
from SLURM's accounting: the run it died in has failed, those it had not begun are still missing.
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
# settings of this launcher, not of sbatch
LAUNCHER_SETTINGS = ("folder", "requeues", "runs_per_task", "max_array", "poll_s")
# Final states of a task. All others are temporary, even those that a new release of SLURM adds.
FINAL_STATES = {
    "BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "LAUNCH_FAILED", "NODE_FAIL",
    "OUT_OF_MEMORY", "REVOKED", "TIMEOUT",
}  # fmt: skip
# settings that submitit names alike for any cluster
COMMON_SETTINGS = ("name", "timeout_min", "cpus_per_task", "gpus_per_node", "mem_gb")


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
    """A task of an array: it does its runs one after the other.

    submitit pickles it by name, and its jobs as plain data. It allows the plugins that the command
    allowed, because clusters may be set up not to pass on the environment.
    """

    def __init__(self) -> None:
        self.plugins = list(plugins.allowed())

    def __call__(self, jobs: Sequence[Job]) -> None:
        """Run `jobs`; wait for those that another launcher is running."""
        from sq.runs.sweep import sweeper

        plugins.allow(self.plugins)
        os.environ.setdefault("OMP_NUM_THREADS", os.environ.get("SLURM_CPUS_PER_TASK", "1"))
        for job in jobs:
            say(" ".join(job.overrides))
            sweeper.finish(job)

    def checkpoint(self, jobs: Sequence[Job]) -> Any:
        """Return the task to queue again: the same one, which then skips the runs that are done."""
        import submitit

        return submitit.helpers.DelayedSubmission(self, jobs)


def run(jobs: list[Job], settings: Settings) -> Generator[Ended, None, None]:
    """Submit `jobs` with the settings of ``conf/hydra/launcher/slurm.yaml``; yield their ends.

    Raises
    ------
    SqError : no SLURM here, or it refuses the jobs
    """
    _require()
    size = settings["runs_per_task"]
    # the numbers of the jobs of each task
    parts = [range(first, min(first + size, len(jobs))) for first in range(0, len(jobs), size)]
    submitted = _submit([[jobs[number] for number in part] for part in parts], settings)
    tasks = dict(zip(submitted, parts, strict=True))
    arrays = _arrays(tasks)
    say(
        f"{quantity(tasks, 'task')} of SLURM job {', '.join(arrays)}; "
        f"scancel {' '.join(arrays)} ends them"
    )
    last_poll = 0.0
    while tasks:
        # One call of sacct reports all tasks. In between, only the result files of tasks are
        # checked.
        is_due = time.monotonic() - last_poll > settings["poll_s"]
        for index, task in enumerate(list(tasks)):
            if task.done(force_check=is_due and index == 0):
                part = tasks.pop(task)
                cause, trace = _death(task)
                for number in part:
                    begun = not cause or _begun(jobs[number], task.job_id)
                    yield Ended(number, cause, trace, begun)
        if is_due:
            last_poll = time.monotonic()
        time.sleep(min(1.0, settings["poll_s"]))


def _require() -> None:
    """Check that there is a SLURM to submit to, and that it will report the end of tasks."""
    try:
        import submitit  # noqa: F401
    except ImportError as error:
        raise SqError(
            f"hydra/launcher=slurm needs submitit: {installation.command('slurm')}"
        ) from error
    missing = [name for name in COMMANDS if shutil.which(name) is None]
    if missing:
        raise SqError(
            f"hydra/launcher=slurm: no {', '.join(missing)} on this machine; run it on a login "
            "node of the cluster (slurm/README.md), or use hydra/launcher=local"
        )
    # Without accounting the death of a task would never be noticed, and waited for forever.
    probe = subprocess.run(
        ["sacct", "-n", "-X", "-o", "JobID"], capture_output=True, text=True, check=False
    )
    if probe.returncode:
        raise SqError(
            f"hydra/launcher=slurm: sacct returned an error ({_stderr(probe)}), and this launcher "
            "needs job accounting to see how tasks end; run the sweep by slurm/array.sbatch, which "
            "needs no accounting (slurm/README.md)"
        )


def _submit(parts: list[list[Job]], settings: Settings) -> list[Any]:
    """Return a submitit job for each of `parts`, in arrays of at most `max_array` tasks.

    Either all of them are submitted, or none.
    """
    import submitit

    submitit.SlurmJob.watcher = _watcher()  # of all jobs from here on
    executor = submitit.AutoExecutor(
        folder=settings["folder"], cluster="slurm", slurm_max_num_timeout=settings["requeues"]
    )
    max_array = settings["max_array"]
    tasks: list[Any] = []
    try:
        executor.update_parameters(**_parameters(settings))
        for first in range(0, len(parts), max_array):
            tasks += executor.map_array(Task(), parts[first : first + max_array])
    except (submitit.core.utils.FailedJobError, subprocess.SubprocessError, OSError) as error:
        message = f"SLURM refused the jobs: {_reason(error)}; {_partitions()}"
        raise SqError(message + _cancel_submitted(_arrays(tasks))) from error
    return tasks


def _parameters(settings: Settings) -> dict[str, Any]:
    """Return the parameters of submitit for the `settings` that have a value."""
    parameters: dict[str, Any] = {}
    for name, value in settings.items():
        if name not in LAUNCHER_SETTINGS and value not in (None, {}, []):
            parameters[name if name in COMMON_SETTINGS else f"slurm_{name}"] = value
    # Since SLURM 22.05 srun does not take over the cores of a task: a step would have one.
    parameters["slurm_srun_args"] = [f"--cpus-per-task={settings['cpus_per_task']}"]
    return parameters


def _watcher() -> Any:
    """Return what asks SLURM for states of tasks.

    submitit's own takes all states that it does not know for final ones, even SUSPENDED.
    """
    from submitit.slurm.slurm import SlurmInfoWatcher

    class Watcher(SlurmInfoWatcher):
        def is_done(self, job_id: str, mode: str = "standard") -> bool:
            # The state can be "CANCELLED by 1000".
            state = self.get_state(job_id, mode=mode).upper().partition(" ")[0]
            return state in FINAL_STATES

    return Watcher(delay_s=600)  # seconds; `run` asks more often


def _arrays(tasks: Iterable[Any]) -> list[str]:
    """Return the numbers of the job arrays that `tasks` are in."""
    return sorted({task.job_id.split("_")[0] for task in tasks}, key=int)


def _cancel_submitted(arrays: list[str]) -> str:
    """Cancel the job arrays of a sweep that was submitted in part; return a clause about that."""
    if not arrays:
        return ""
    names = " ".join(arrays)
    try:
        subprocess.run(["scancel", *arrays], capture_output=True, check=True)
    except (subprocess.SubprocessError, OSError):
        return f"; submitted before and still there: end it by scancel {names}"
    return f"; submitted before and cancelled: {names}"


def _reason(error: Exception) -> str:
    """Return the last line of sbatch's message."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    return lines[-1].removeprefix("sbatch: error: ").rstrip(".")


def _partitions() -> str:
    process = subprocess.run(
        ["sinfo", "-h", "-o", "%R"], capture_output=True, text=True, check=False
    )
    names = sorted(set(process.stdout.split()))
    if not names:
        return f"and sinfo knows no partition: {_stderr(process)}"
    return f"partitions here: {', '.join(names)}"


def _stderr(process: subprocess.CompletedProcess) -> str:
    return " ".join(process.stderr.split()) or f"exit code {process.returncode}"


def _begun(job: Job, task_id: str) -> bool:
    """Tell whether a task that died was doing `job`: then its lock is still there."""
    holder = run_locks.last_holder(job.file)
    return holder is not None and holder.get("job") == task_id


def _death(task: Any) -> tuple[str, str]:
    """Return what `task` died of by SLURM, and the end of its log; "" and "" if it finished."""
    if task.paths.result_pickle.exists():
        error = task.exception()
        if error is None:
            return "", ""
        return f"SLURM job {task.job_id}: {_last(str(error))}", str(error)[-TAIL:]
    log: Path = task.paths.stderr
    trace = log.read_text(errors="replace")[-TAIL:] if log.is_file() else ""
    cause = f"SLURM job {task.job_id} ended as {task.state} and left no result; its log: {log}"
    return cause, trace


def _last(text: str) -> str:
    """Return the last line of an error of submitit that says something about the job."""
    lines = [line for line in text.splitlines() if line.strip(" -")]
    # the advice of submitit on where to find logs
    advice = ("You can check", "or at paths", "  - ")
    of_job = [line for line in lines if not line.startswith(advice)]
    return (of_job or lines or ["failed"])[-1].strip()
