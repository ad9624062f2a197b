"""Runs on this machine, several at a time: one process for each GPU, or the CPU cores shared out among processes.

Each process takes run after run, so that PyTorch is imported once. One that dies (a crash, the
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

CORES = 4  # of a process, where neither GPUs nor threads= decide
Place = dict[str, str]  # environment variables that give a process its GPU or its cores


class Settings(TypedDict):
    """Types of ``conf/hydra/launcher/local.yaml``."""

    processes: Count | None
    folder: str


@dataclass
class Worker:
    """A process, the line to it, and the job it does: its number, or None.

    `log` is where it prints, which had `before` bytes when it began, of the process whose place it
    took.
    """

    place: Place
    log: Path
    before: int
    process: SpawnProcess
    line: Connection
    number: int | None = None


def run(jobs: list[Job], settings: Settings) -> Generator[Ended, None, None]:
    """Run `jobs`, one or more, with the `settings` of ``conf/hydra/launcher/local.yaml``; yield each job's end.

    A run that another launcher is doing is tried again when no other is left, and then waited for.
    """
    given = places(jobs, settings["processes"])
    # Of this command alone: another one at the same time would print to the same files.
    own = f"{time.strftime('%Y%m%d-%H%M%S')}-{socket.gethostname()}-{os.getpid()}"
    folder = Path(settings["folder"]) / own
    folder.mkdir(parents=True, exist_ok=True)
    say(
        f"{quantity(given, 'process')} on this machine, {_words(given[0])} each; what is printed there is in {folder}"
    )
    queue = deque((number, False) for number in range(len(jobs)))
    workers = [_start(place, folder / f"{number}.log") for number, place in enumerate(given)]
    try:
        for worker in workers:
            _give(worker, jobs, queue)
        while busy := [worker for worker in workers if worker.number is not None]:
            ready = wait([worker.line for worker in busy])
            for at, worker in enumerate(workers):
                if worker.number is None or worker.line not in ready:
                    continue
                number = worker.number
                try:
                    if worker.line.recv():
                        yield Ended(number)
                    else:
                        queue.append((number, True))
                except (EOFError, OSError):
                    yield Ended(number, *_death(worker))
                    if queue:
                        workers[at] = worker = _start(worker.place, worker.log)
                _give(worker, jobs, queue)
    finally:
        for worker in workers:
            worker.line.close()
            worker.process.terminate()
        for worker in workers:
            worker.process.join()


def places(jobs: list[Job], processes: int | None) -> list[Place]:
    """Return what sets each process apart: its GPU, where there are GPUs that the jobs may use, or its cores.

    `processes` None means one for each GPU, or as many as the cores suffice for: `threads` each,
    else `CORES`.
    """
    gpus = _gpus() if any(one.config["device"] in ("auto", "cuda") for one in jobs) else []
    threads = max((one.config["threads"] or CORES for one in jobs), default=CORES)
    # Not what OMP_NUM_THREADS leaves: that is of one process, and each gets its own here.
    number = processes or len(gpus) or max(1, cpu_cores.own() // threads)
    number = min(number, len(jobs))
    share = {"OMP_NUM_THREADS": str(max(1, cpu_cores.own() // number))}
    return [
        {**share, **({"CUDA_VISIBLE_DEVICES": gpus[i % len(gpus)]} if gpus else {})}
        for i in range(number)
    ]


def _gpus() -> list[str]:
    """Return the GPUs this process may use, as CUDA_VISIBLE_DEVICES names them."""
    told = os.environ.get("CUDA_VISIBLE_DEVICES")
    if told is not None:
        return [name.strip() for name in told.split(",") if name.strip() not in ("", "-1")]
    import torch

    return [str(number) for number in range(torch.cuda.device_count())]


def _words(place: Place) -> str:
    told = quantity(int(place["OMP_NUM_THREADS"]), "CPU thread")
    return f"one GPU and {told}" if "CUDA_VISIBLE_DEVICES" in place else told


def _start(place: Place, log: Path) -> Worker:
    before = log.stat().st_size if log.is_file() else 0
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_work, args=(theirs, place, log))
    process.start()
    theirs.close()  # so that its end is the end of the line
    return Worker(place, log, before, process, ours)


def _give(worker: Worker, jobs: list[Job], queue: deque[tuple[int, bool]]) -> None:
    """Give `worker` the next job of `queue`, if there is one."""
    worker.number = None
    if queue:
        worker.number, again = queue.popleft()
        with contextlib.suppress(OSError):  # it is dead already, which reading from it will tell
            worker.line.send((jobs[worker.number], again))


def _death(worker: Worker) -> tuple[str, str]:
    """Return what the process of `worker` died of, and the end of what it printed."""
    worker.process.join()
    code = worker.process.exitcode or 0
    cause = (
        f"its process was killed by signal {-code} ({signal.Signals(-code).name})"
        if code < 0
        else (f"its process ended with exit code {code}")
    )
    if code == -signal.SIGKILL:
        cause += "; the system does that when memory runs out"
    # it may die before it prints
    printed = worker.log.read_bytes()[worker.before :] if worker.log.is_file() else b""
    return cause, printed.decode(errors="replace")[-TAIL:]


def _work(line: Connection, place: Place, log: Path) -> None:
    """Do the jobs that come in on `line`, until it is closed."""
    from sq.runs.sweep import sweeper

    os.environ.update(place)
    with log.open("a") as stream:
        os.dup2(stream.fileno(), sys.stdout.fileno())
        os.dup2(stream.fileno(), sys.stderr.fileno())
    faulthandler.enable()
    with contextlib.suppress(KeyboardInterrupt):
        _serve(line, sweeper.finish)


def _serve(line: Connection, finish: Callable[..., bool]) -> None:
    """Let `finish` do the jobs that come in; only the end of the line is the end of the sweep, not an error in one."""
    while True:
        try:
            one, again = line.recv()
        except (EOFError, OSError):
            return
        over = finish(one, wait=again)
        try:
            line.send(over)
        except OSError:
            return
