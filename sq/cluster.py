"""Runs on a SLURM cluster, through submitit: tasks of job arrays, followed from the login node.

A task whose time runs out, or that is preempted, is queued again: its runs that are done are not run again. One that
dies (killed, out of memory, its node lost) leaves no record, so its end is told by SLURM's accounting: the run it died
in has failed, those it had not come to are still missing.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

from sq import claim
from sq.console import say
from sq.errors import SqError
from sq.launch import TAIL, Ended
from sq.points import Job

COMMANDS = ("sbatch", "scontrol", "sacct", "sinfo")
OWN = ("folder", "requeues", "runs_per_task", "max_array", "poll_s")  # settings that are not sbatch's
SHARED = ("name", "timeout_min", "cpus_per_task", "gpus_per_node", "mem_gb")  # that submitit names for any cluster


class Task:
    """What a task does: its runs, one after the other. submitit pickles it by name, and its jobs as plain data."""

    def __call__(self, jobs: Sequence[Job]) -> None:
        """Run `jobs`; those that another launcher is running are waited for."""
        from sq import sweep

        os.environ.setdefault("OMP_NUM_THREADS", os.environ.get("SLURM_CPUS_PER_TASK", "1"))
        for one in jobs:
            say(" ".join(one.overrides))
            sweep.finish(one)

    def checkpoint(self, jobs: Sequence[Job]) -> Any:
        """Return what the task does when it is queued again: the same, of which it finds a part done."""
        import submitit

        return submitit.helpers.DelayedSubmission(self, jobs)


def run(jobs: list[Job], settings: dict[str, Any]) -> Generator[Ended, None, None]:
    """Submit `jobs` with the `settings` of ``conf/hydra/launcher/slurm.yaml``; yield each one's end.

    Raises
    ------
    SqError : no SLURM here, or it refuses the jobs
    """
    _require(settings)
    each = settings["runs_per_task"]
    parts = [range(first, min(first + each, len(jobs))) for first in range(0, len(jobs), each)]
    tasks = dict(zip(_submit([[jobs[i] for i in part] for part in parts], settings), parts, strict=True))
    arrays = sorted({task.job_id.split("_")[0] for task in tasks}, key=int)
    say(f"{len(tasks)} tasks of SLURM job {', '.join(arrays)}; scancel {' '.join(arrays)} ends them")
    looked = 0.0
    while tasks:
        # One call of sacct tells of all tasks; files that tell of a task's end are looked at in between.
        due = time.monotonic() - looked > settings["poll_s"]
        for number, task in enumerate(list(tasks)):
            if task.done(force_check=due and number == 0):
                part = tasks.pop(task)
                cause, trace = _death(task)
                for run_number in part:
                    yield Ended(run_number, cause, trace, not cause or _begun(jobs[run_number], task.job_id))
        looked = time.monotonic() if due else looked
        time.sleep(min(1.0, settings["poll_s"]))


def _require(settings: dict[str, Any]) -> None:
    """Make sure that there is a SLURM to submit to, and that the settings make sense."""
    try:
        import submitit  # noqa: F401
    except ImportError as error:
        raise SqError('hydra/launcher=slurm needs submitit: pip install -e ".[slurm]"') from error
    if missing := [name for name in COMMANDS if shutil.which(name) is None]:
        raise SqError(
            f"hydra/launcher=slurm: no {', '.join(missing)} on this machine; run it on a login node of the cluster "
            "(slurm/README.md), or use hydra/launcher=local"
        )
    for name in ("runs_per_task", "max_array", "array_parallelism", "timeout_min", "cpus_per_task"):
        if not isinstance(settings[name], int) or settings[name] < 1:
            raise SqError(f"hydra.launcher.{name}={settings[name]}: a whole number, 1 or more")


def _submit(parts: list[list[Job]], settings: dict[str, Any]) -> list[Any]:
    """Return a submitit job for each of `parts`, in arrays of at most `max_array` tasks."""
    import submitit

    executor = submitit.AutoExecutor(
        folder=settings["folder"], cluster="slurm", slurm_max_num_timeout=settings["requeues"]
    )
    given = {name: value for name, value in settings.items() if name not in OWN and value not in (None, {}, [])}
    most = settings["max_array"]
    try:
        executor.update_parameters(**{n if n in SHARED else f"slurm_{n}": value for n, value in given.items()})
        arrays = [executor.map_array(Task(), parts[i : i + most]) for i in range(0, len(parts), most)]
    except (submitit.core.utils.FailedJobError, subprocess.SubprocessError, OSError) as error:
        raise SqError(f"SLURM refused the jobs: {_reason(error)}; {_partitions()}") from error
    return [task for array in arrays for task in array]


def _reason(error: Exception) -> str:
    """Return sbatch's last word."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1].removeprefix("sbatch: error: ").rstrip(".") if lines else type(error).__name__


def _partitions() -> str:
    found = subprocess.run(["sinfo", "-h", "-o", "%R"], capture_output=True, text=True, check=False)
    names = sorted(set(found.stdout.split()))
    return f"partitions here: {', '.join(names)}" if names else f"and sinfo knows no partition: {_reason_of(found)}"


def _reason_of(done: subprocess.CompletedProcess) -> str:
    return " ".join(done.stderr.split()) or f"exit code {done.returncode}"


def _begun(one: Job, task: str) -> bool:
    """Return whether job `one` was being done by `task` when that died: then its claim is still there."""
    who = claim.last(one.file)
    return who is not None and who.get("job") == task


def _death(task: Any) -> tuple[str, str]:
    """Return what SLURM says that `task` died of, and the end of its log; "" if it came to its end."""
    if task.paths.result_pickle.exists():
        error = task.exception()
        return ("", "") if error is None else (f"SLURM job {task.job_id}: {_last(str(error))}", str(error)[-TAIL:])
    log: Path = task.paths.stderr
    trace = log.read_text(errors="replace")[-TAIL:] if log.is_file() else ""
    return f"SLURM job {task.job_id} ended as {task.state} and left no result; its log: {log}", trace


def _last(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip(" -")]
    inner = [line for line in lines if not line.startswith(("You can check", "or at paths", "  - "))]
    return (inner or lines or ["failed"])[-1].strip()
