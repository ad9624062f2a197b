"""Run jobs in parallel processes on this machine, one for each GPU or for some CPU cores.

Each process does run after run, so that PyTorch is imported once. One that dies (a crash, the
system out of memory) is replaced, and the sweep learns which run it died in.
"""

from __future__ import annotations

import contextlib
import faulthandler
import multiprocessing
import os
import signal
import socket
import sys
import time
from collections import deque
from collections.abc import Callable, Generator
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import TypedDict

from sq.config.constraints import Count
from sq.core import cpu_cores
from sq.core.progress import say
from sq.core.wording import quantity
from sq.runs.launchers.base import TAIL, Ended
from sq.runs.sweep.expand import Job

CORES = 4  # of a process, unless GPUs or threads= decide
Environment = dict[str, str]  # variables that give a process its GPU or its cores


class Settings(TypedDict):
    """Types of ``conf/hydra/launcher/local.yaml``."""

    processes: Count | None
    folder: str


@dataclass
class Worker:
    """A process that does jobs.

    Parameters
    ----------
    log : the file with its output
    log_start : the size of that file when the process began, in bytes, from the process before it
    connection : sends jobs to it, and receives whether each is done
    number : of the job it does, None if it does none
    """

    environment: Environment
    log: Path
    log_start: int
    process: SpawnProcess
    connection: Connection
    number: int | None = None


def run(jobs: list[Job], settings: Settings) -> Generator[Ended, None, None]:
    """Run `jobs`, one or more, with the `settings` of ``conf/hydra/launcher/local.yaml``.

    Yields the end of each job. A job that another launcher is doing is tried again when no other is
    left, and then waited for.
    """
    process_environments = environments(jobs, settings["processes"])
    # A folder for this command alone: another one at the same time would print to the same files.
    name = f"{time.strftime('%Y%m%d-%H%M%S')}-{socket.gethostname()}-{os.getpid()}"
    folder = Path(settings["folder"]) / name
    folder.mkdir(parents=True, exist_ok=True)
    say(
        f"{quantity(process_environments, 'process')} on this machine, "
        f"{_describe(process_environments[0])} each; what is printed there is in {folder}"
    )
    queue = deque((number, False) for number in range(len(jobs)))
    workers = [
        _start(environment, folder / f"{number}.log")
        for number, environment in enumerate(process_environments)
    ]
    try:
        for worker in workers:
            _assign(worker, jobs, queue)
        yield from _follow(workers, jobs, queue)
    finally:
        for worker in workers:
            worker.connection.close()
            worker.process.terminate()
        for worker in workers:
            worker.process.join()


def _follow(
    workers: list[Worker], jobs: list[Job], queue: deque[tuple[int, bool]]
) -> Generator[Ended, None, None]:
    """Yield the end of each job, give `workers` new jobs, and replace those that die."""
    while True:
        busy = [worker for worker in workers if worker.number is not None]
        if not busy:
            return
        ready = wait([worker.connection for worker in busy])
        for index, worker in enumerate(workers):
            number = worker.number
            if number is None or worker.connection not in ready:
                continue
            try:
                if worker.connection.recv():
                    yield Ended(number)
                else:  # another launcher is doing the job: last in the queue, and waited for then
                    queue.append((number, True))
            except (EOFError, OSError):
                yield Ended(number, *_death(worker))
                if queue:
                    worker = workers[index] = _start(worker.environment, worker.log)
            _assign(worker, jobs, queue)


def environments(jobs: list[Job], processes: int | None) -> list[Environment]:
    """Return the environment of each process: its GPU, if jobs may use GPUs, and its CPU threads.

    `processes` None means one for each GPU, or as many as the cores suffice for: `threads` each,
    else `CORES`.
    """
    gpus = _gpus() if any(job.config["device"] in ("auto", "cuda") for job in jobs) else []
    threads = max((job.config["threads"] or CORES for job in jobs), default=CORES)
    # OMP_NUM_THREADS does not limit the cores here: it applies to one process.
    number = processes or len(gpus) or max(1, cpu_cores.own() // threads)
    number = min(number, len(jobs))
    process_environments = []
    for index in range(number):
        environment = {"OMP_NUM_THREADS": str(max(1, cpu_cores.own() // number))}
        if gpus:
            environment["CUDA_VISIBLE_DEVICES"] = gpus[index % len(gpus)]
        process_environments.append(environment)
    return process_environments


def _gpus() -> list[str]:
    """Return the GPUs this process may use, as CUDA_VISIBLE_DEVICES names them."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [name.strip() for name in visible.split(",") if name.strip() not in ("", "-1")]
    import torch

    return [str(number) for number in range(torch.cuda.device_count())]


def _describe(environment: Environment) -> str:
    threads = quantity(int(environment["OMP_NUM_THREADS"]), "CPU thread")
    return f"one GPU and {threads}" if "CUDA_VISIBLE_DEVICES" in environment else threads


def _start(environment: Environment, log: Path) -> Worker:
    log_start = log.stat().st_size if log.is_file() else 0
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_work, args=(theirs, environment, log))
    process.start()
    theirs.close()  # so that the connection ends when the process does
    return Worker(environment, log, log_start, process, ours)


def _assign(worker: Worker, jobs: list[Job], queue: deque[tuple[int, bool]]) -> None:
    """Give `worker` the next job of `queue`, if there is one."""
    worker.number = None
    if queue:
        worker.number, wait_for_others = queue.popleft()
        with contextlib.suppress(OSError):  # the process is dead, which `_follow` will notice
            worker.connection.send((jobs[worker.number], wait_for_others))


def _death(worker: Worker) -> tuple[str, str]:
    """Return what the process of `worker` died of, and the end of its output."""
    worker.process.join()
    code = worker.process.exitcode or 0
    if code < 0:
        cause = f"its process was killed by signal {-code} ({signal.Signals(-code).name})"
    else:
        cause = f"its process ended with exit code {code}"
    if code == -signal.SIGKILL:
        cause += "; the system does that when memory runs out"
    # It may have died before it printed anything.
    output = worker.log.read_bytes()[worker.log_start :] if worker.log.is_file() else b""
    return cause, output.decode(errors="replace")[-TAIL:]


def _work(connection: Connection, environment: Environment, log: Path) -> None:
    """Do the jobs that come in on `connection`, until it is closed."""
    from sq.runs.sweep import sweeper

    os.environ.update(environment)
    with log.open("a") as stream:
        os.dup2(stream.fileno(), sys.stdout.fileno())
        os.dup2(stream.fileno(), sys.stderr.fileno())
    faulthandler.enable()
    with contextlib.suppress(KeyboardInterrupt):
        _serve(connection, sweeper.finish)


def _serve(connection: Connection, finish: Callable[..., bool]) -> None:
    """Let `finish` do the jobs that come in, until `connection` is closed."""
    while True:
        # Only errors of the connection end the loop, not one of a job.
        try:
            job, wait_for_others = connection.recv()
        except (EOFError, OSError):
            return
        is_over = finish(job, wait=wait_for_others)
        try:
            connection.send(is_over)
        except OSError:
            return
