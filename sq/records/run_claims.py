"""Claims: of all launchers that work on a sweep, on any number of machines, one at a time does a run.

A claim is a file of the run's key and a generation, ``claims/KEY.1``, ``claims/KEY.2`` ..., beside
the records; the highest holds. It appears whole, by a hard link, which file servers make atomically
(NFS included), for one of several who ask. A holder counts beats in it. Whether it is still alive
is told by its process, where that is on this machine and shown; else by its beats, timed by the
reader's own clock: clocks of machines and file servers differ, so no time stamp is looked at. A
dead claim is never removed, which two could do at once, but outdone: the first to link the next
generation holds the run, and whoever holds it reads the record again before it does anything.
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
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sq.errors import SqError

BEAT = 10.0  # seconds between two beats of a holder
# a process of another user, of which the system shows only that it is there (hidepid)
HIDDEN = "hidden"
LEASE = 90.0  # seconds without a beat after which a holder on another machine counts as dead

# (token, beat) of claims of other machines: when it was first read here
_watched: dict[tuple[str, int], float] = {}


@dataclass
class Claim:
    """The right to do the run of one record, until it is released or the process ends."""

    file: Path
    generation: int
    who: dict[str, Any]
    _stop: threading.Event = field(default_factory=threading.Event)
    # no beat may follow the release
    _writing: threading.Lock = field(default_factory=threading.Lock)

    def lost(self) -> bool:
        """Return whether another launcher took this process for dead and holds the run now, or has done it since."""
        own = _read(_place(self.file, self.generation))
        outdone = max(_generations(self.file), default=0) > self.generation
        return outdone or own is None or own["token"] != self.who["token"]

    def release(self) -> None:
        """Give the run back, whatever became of it."""
        with self._writing:
            self._stop.set()
            # the lowest first: the highest holds to the end
            for generation in sorted(_generations(self.file)):
                if generation <= self.generation:
                    with contextlib.suppress(OSError):
                        _place(self.file, generation).unlink()

    def beat(self) -> None:
        """Tell others that this process is alive, until `release`."""
        while not self._stop.wait(BEAT):
            # A beat that cannot be written, on a full disk say, is a beat missed: the run goes on.
            with self._writing, contextlib.suppress(OSError):
                if self._stop.is_set() or self.lost():
                    return
                self.who["beat"] += 1
                with _written(self.file, self.who) as part:
                    part.replace(_place(self.file, self.generation))


def take(file: Path) -> Claim | None:
    """Return the claim to the run of record `file`, or None while another process holds it.

    Raises
    ------
    SqError : claims cannot be written there
    """
    try:
        (file.parent / "claims").mkdir(parents=True, exist_ok=True)
        generation = max(_generations(file), default=0)
        if generation and ((seen := _read(_place(file, generation))) is None or alive(seen)):
            # held; or given back since it was listed, so that its number says nothing: ask again
            return None
        who = {
            **_me(),
            "token": uuid.uuid4().hex,
            "beat": 0,
            "since": time.strftime("%Y-%m-%d %H:%M:%S%z"),
        }
        with _written(file, who) as part:
            if not _link(part, _place(file, generation + 1)):
                return None
        if any(
            alive(_read(_place(file, other)))
            for other in _generations(file)
            if other != generation + 1
        ):
            # two at once, by listings of different age
            _place(file, generation + 1).unlink(missing_ok=True)
            return None
    except OSError as error:
        raise SqError(
            f"cannot claim a run in {file.parent / 'claims'}: {error.strerror}; free space or correct results="
        ) from error
    claim = Claim(file, generation + 1, who)
    threading.Thread(target=claim.beat, name=f"claim {file.stem}", daemon=True).start()
    return claim


def holder(file: Path) -> dict[str, Any] | None:
    """Return who holds the run of record `file`: host, pid, since, and `job` under SLURM; None if nobody does."""
    who = last(file)
    return who if alive(who) else None


def last(file: Path) -> dict[str, Any] | None:
    """Return who claimed the run of record `file` last and has not given it back, dead or alive; None if nobody."""
    generation = max(_generations(file), default=0)
    return _read(_place(file, generation)) if generation else None


def alive(who: dict[str, Any] | None) -> bool:
    """Return whether the holder `who` of a claim may still be at work; None is a claim gone since it was listed."""
    if who is None:
        return False
    if who["machine"] == _machine() and (started := _started(who["pid"])) != HIDDEN:
        return started == who["started"]
    first = _watched.setdefault((who["token"], who["beat"]), time.monotonic())
    return time.monotonic() - first < LEASE


def _me() -> dict[str, Any]:
    me = {
        "host": socket.gethostname(),
        "machine": _machine(),
        "pid": os.getpid(),
        "started": _started(os.getpid()),
    }
    array = [os.environ.get(f"SLURM_ARRAY_{part}_ID", "") for part in ("JOB", "TASK")]
    # as squeue shows it and scancel takes it
    job = "_".join(array) if all(array) else os.environ.get("SLURM_JOB_ID")
    return {**me, "job": job} if job else me


def words(who: dict[str, Any]) -> str:
    """Return where and since when a holder is at work, for a person."""
    job = f", SLURM job {who['job']}" if "job" in who else ""
    return f"on {who['host']}, process {who['pid']}{job}, since {who['since']}"


def _machine() -> str:
    """Return what tells where process ids mean the same: host, boot and, in containers, the space of process ids."""
    boot, space = "", ""
    with contextlib.suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        space = str(Path("/proc/self/ns/pid").readlink())
    return f"{socket.gethostname()} {boot} {space}"


def _started(pid: int) -> str:
    """Return when process `pid` of this machine began, in its own ticks; "" if there is none, or it is a zombie."""
    try:
        words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return "" if words[0] in "ZX" else words[19]
    except OSError:
        shown = Path("/proc/self/stat").exists()
    try:
        with contextlib.suppress(PermissionError):
            os.kill(pid, 0)
    except ProcessLookupError:
        return ""
    # no /proc on this system: an id given to a new process looks like the old one
    return HIDDEN if shown else "alive"


def _place(file: Path, generation: int) -> Path:
    return file.parent / "claims" / f"{file.stem}.{generation}"


def _generations(file: Path) -> list[int]:
    names = (entry.name.split(".") for entry in (file.parent / "claims").glob(f"{file.stem}.*"))
    return [int(parts[1]) for parts in names if len(parts) == 2 and parts[1].isdigit()]


def _read(place: Path) -> dict[str, Any] | None:
    try:
        who = json.loads(place.read_text())
    except FileNotFoundError:
        return None
    except (ValueError, OSError) as error:
        # Half-written, where there are no hard links, or replaced on a file server while it was
        # read: alive until it has stood so for long.
        if isinstance(error, OSError) and error.errno != errno.ESTALE:
            raise
        return {"host": "?", "machine": "", "pid": 0, "since": "?", "token": str(place), "beat": 0}
    assert isinstance(who, dict)
    return who


@contextlib.contextmanager
def _written(file: Path, who: dict[str, Any]) -> Iterator[Path]:
    """Give a file of this process alone that holds `who`; nothing is left of it, not on a full disk either."""
    part = file.parent / "claims" / f".{file.stem}.{who['token']}"
    try:
        with part.open("w") as stream:
            json.dump(who, stream)
            stream.flush()
            os.fsync(stream.fileno())
        yield part
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)


def _link(part: Path, place: Path) -> bool:
    """Give `part` the name `place` as well unless that exists, and return whether it was us."""
    try:
        os.link(part, place)
    except OSError as error:
        # no hard links here
        if error.errno in (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS):
            return _create(part, place)
        # An answer lost on the way is asked for again by NFS, and the second one says that the name
        # exists.
        if part.stat().st_nlink == 2:
            return True
        if error.errno != errno.EEXIST:
            raise
        return False
    return True


def _create(part: Path, place: Path) -> bool:
    try:
        with place.open("x") as stream:
            stream.write(part.read_text())
    except FileExistsError:
        return False
    return True
