"""Locks of runs: of all launchers on any number of machines, one at a time does a run.

A lock is a file named by the run's key and a generation, ``claims/KEY.1``, ``claims/KEY.2`` ...,
beside the records. The highest generation holds the run. The file appears whole, by a hard link:
file servers (NFS included) create it atomically, for one of several processes that ask.

The holder counts up a heartbeat in its file. A holder is alive if its process exists, where that
is on this machine and visible; otherwise if its heartbeat changes, timed by the reader's own clock.
Clocks of machines and file servers differ, so time stamps of files are not used.

A dead lock is never removed, because two processes could do that at once. It is superseded: the
first process to link the next generation holds the run. Whoever holds it reads the record again
before doing anything.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
import threading
import time
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sq.core import files
from sq.errors import SqError

# Lock files lie in this folder beside the records. The name is kept, since another launcher may run
# an earlier version.
LOCK_FOLDER = "claims"
HEARTBEAT = 10.0  # seconds between two heartbeats of a holder
LEASE = 90.0  # seconds without a heartbeat after which a holder on another machine counts as dead
# a process of another user, of which the system shows only that it exists (hidepid)
HIDDEN = "hidden"

Holder = dict[str, Any]  # host, machine, pid, started, token, beat, since, and job under SLURM

# (token, heartbeat) of holders on other machines: the time at which it was first read here
_first_seen: dict[tuple[str, int], float] = {}


@dataclass
class RunLock:
    """The exclusive right to do the run of one record, until it is released or the process ends."""

    file: Path
    generation: int
    holder: Holder
    _stop: threading.Event = field(default_factory=threading.Event)
    # no heartbeat may follow the release
    _writing: threading.Lock = field(default_factory=threading.Lock)

    def lost(self) -> bool:
        """Tell whether another launcher took this process for dead, and took over the run."""
        holder = _read(_lock_file(self.file, self.generation))
        superseded = max(_generations(self.file), default=0) > self.generation
        return superseded or holder is None or holder["token"] != self.holder["token"]

    def release(self) -> None:
        """Let other processes have the run, whatever became of it."""
        with self._writing:
            self._stop.set()
            # the lowest first: the highest holds the run to the end
            for generation in sorted(_generations(self.file)):
                if generation <= self.generation:
                    with contextlib.suppress(OSError):
                        _lock_file(self.file, generation).unlink()

    def beat(self) -> None:
        """Write heartbeats until `release`."""
        while not self._stop.wait(HEARTBEAT):
            # A heartbeat that cannot be written, on a full disk say, is missed: the run goes on.
            with self._writing, contextlib.suppress(OSError):
                if self._stop.is_set() or self.lost():
                    return
                self.holder["beat"] += 1
                lock_file = _lock_file(self.file, self.generation)
                with files.replacing(lock_file) as part:
                    _write(part, self.holder)


def acquire(file: Path) -> RunLock | None:
    """Return the lock of the run of record `file`, or None while another process holds it.

    Raises
    ------
    SqError : locks cannot be written there
    """
    folder = file.parent / LOCK_FOLDER
    try:
        folder.mkdir(parents=True, exist_ok=True)
        latest = max(_generations(file), default=0)
        if latest:
            holder = _read(_lock_file(file, latest))
            # None: released since the folder was listed, so its generation says nothing. Ask again.
            if holder is None or is_alive(holder):
                return None
        generation = latest + 1
        holder = {
            **_this_process(),
            "token": uuid.uuid4().hex,
            "beat": 0,
            "since": time.strftime("%Y-%m-%d %H:%M:%S%z"),
        }
        lock_file = _lock_file(file, generation)
        with files.temporary_beside(lock_file) as part:
            _write(part, holder)
            if not _link(part, lock_file):
                return None
        # Two processes can get a lock at once, by listings of the folder of different age.
        if _has_other_holder(file, generation):
            lock_file.unlink(missing_ok=True)
            return None
    except OSError as error:
        raise SqError(
            f"cannot lock a run in {folder}: {error.strerror}; free space or correct results="
        ) from error
    lock = RunLock(file, generation, holder)
    threading.Thread(target=lock.beat, name=f"lock {file.stem}", daemon=True).start()
    return lock


def holder(file: Path) -> Holder | None:
    """Return who holds the run of record `file`, None if nobody does."""
    latest = last_holder(file)
    return latest if is_alive(latest) else None


def last_holder(file: Path) -> Holder | None:
    """Return who locked the run of record `file` last without release, dead or alive, or None."""
    generation = max(_generations(file), default=0)
    return _read(_lock_file(file, generation)) if generation else None


def locked_records(folder: Path) -> set[Path]:
    """Return the files of the records whose runs have a lock, of a live process or not."""
    keys = {
        lock_file.name.partition(".")[0] for lock_file in (folder / LOCK_FOLDER).glob("[!.]*.*")
    }
    return {folder / f"{key}.json" for key in keys}


def is_alive(holder: Holder | None) -> bool:
    """Tell whether the holder of a lock may still be at work; None is one that was released."""
    if holder is None:
        return False
    if holder["machine"] == _machine():
        started = _start_time(holder["pid"])
        if started != HIDDEN:
            return started == holder["started"]
    first_seen = _first_seen.setdefault((holder["token"], holder["beat"]), time.monotonic())
    return time.monotonic() - first_seen < LEASE


def describe(holder: Holder) -> str:
    """Return where and since when a holder is at work, for messages."""
    job = f", SLURM job {holder['job']}" if "job" in holder else ""
    return f"on {holder['host']}, process {holder['pid']}{job}, since {holder['since']}"


def _has_other_holder(file: Path, generation: int) -> bool:
    """Tell whether a live process has a lock of another generation."""
    others = [other for other in _generations(file) if other != generation]
    return any(is_alive(_read(_lock_file(file, other))) for other in others)


def _this_process() -> Holder:
    process = {
        "host": socket.gethostname(),
        "machine": _machine(),
        "pid": os.getpid(),
        "started": _start_time(os.getpid()),
    }
    # As squeue shows the job and scancel takes it: ARRAY_TASK, or the number of a single job.
    array = [os.environ.get(f"SLURM_ARRAY_{part}_ID", "") for part in ("JOB", "TASK")]
    job = "_".join(array) if all(array) else os.environ.get("SLURM_JOB_ID")
    return {**process, "job": job} if job else process


def _machine() -> str:
    """Return an identity within which process ids are unique.

    It consists of host, boot and, in containers, the namespace of process ids.
    """
    boot, namespace = "", ""
    with contextlib.suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        namespace = str(Path("/proc/self/ns/pid").readlink())
    return f"{socket.gethostname()} {boot} {namespace}"


def _start_time(pid: int) -> str:
    """Return when a process of this machine began, in its clock ticks; "" if it is gone.

    The start time tells a process from a later one with the same id. A zombie is gone.
    """
    try:
        # The name of the program, in parentheses, may contain anything.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        state, start = fields[0], fields[19]
        return "" if state in "ZX" else start
    except OSError:
        has_proc = Path("/proc/self/stat").exists()
    try:
        with contextlib.suppress(PermissionError):
            os.kill(pid, 0)  # sends no signal: tells only whether the process exists
    except ProcessLookupError:
        return ""
    # Without /proc, a new process with the same id cannot be told from the old one.
    return HIDDEN if has_proc else "alive"


def _lock_file(file: Path, generation: int) -> Path:
    return file.parent / LOCK_FOLDER / f"{file.stem}.{generation}"


def _generations(file: Path) -> list[int]:
    """Return the generations of the lock files of a run, in any order."""
    generations = []
    for lock_file in (file.parent / LOCK_FOLDER).glob(f"{file.stem}.*"):
        parts = lock_file.name.split(".")
        if len(parts) == 2 and parts[1].isdigit():
            generations.append(int(parts[1]))
    return generations


def _read(lock_file: Path) -> Holder | None:
    """Return the holder in a lock file, None if there is no such file."""
    try:
        holder = json.loads(lock_file.read_text())
    except FileNotFoundError:
        return None
    except (ValueError, OSError) as error:
        if isinstance(error, OSError) and error.errno != errno.ESTALE:
            raise
        # Half-written, where there are no hard links, or replaced on a file server while it was
        # read: it counts as alive until it has stayed so for `LEASE`.
        return {
            "host": "?",
            "machine": "",
            "pid": 0,
            "since": "?",
            "token": str(lock_file),
            "beat": 0,
        }
    assert isinstance(holder, dict)
    return holder


def _write(part: Path, holder: Holder) -> None:
    files.write_to_disk(part, json.dumps(holder).encode())


def _link(part: Path, lock_file: Path) -> bool:
    """Give `part` the name `lock_file` as well, unless that exists; return whether it was us."""
    try:
        os.link(part, lock_file)
    except OSError as error:
        # no hard links on this file system
        if error.errno in (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS):
            return _create(part, lock_file)
        # NFS repeats a request whose reply was lost, and then reports that the name exists.
        if part.stat().st_nlink == 2:
            return True
        if error.errno != errno.EEXIST:
            raise
        return False
    return True


def _create(part: Path, lock_file: Path) -> bool:
    try:
        with lock_file.open("x") as stream:
            stream.write(part.read_text())
    except FileExistsError:
        return False
    return True
