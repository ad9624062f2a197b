import errno
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import processes
import pytest

from sq.errors import SqError
from sq.records import run_locks

HOLD = "import sys, time; from pathlib import Path; from sq.records import run_locks; "
HOLD += "c = run_locks.acquire(Path(sys.argv[1])); "


@pytest.fixture
def file(tmp_path):
    return tmp_path / "sweep" / "0123456789abcdef.json"


def killed(file):
    """Let a process hold the run, and kill it."""
    code = f"{HOLD} print(c is not None, flush=True); time.sleep(60)"
    with processes.Popen(
        [sys.executable, "-c", code, str(file)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "True\n"
        assert run_locks.acquire(file) is None
        assert run_locks.holder(file)["pid"] == process.pid
        process.kill()


def lock_files(file):
    return sorted(p.name for p in (file.parent / "claims").iterdir())


def elsewhere(file, generation, **more):
    who = {
        "host": "node7",
        "machine": "node7 x y",
        "pid": 1,
        "started": "2",
        "token": "t",
        "beat": 0,
        "since": "",
    }
    place = file.parent / "claims" / f"{file.stem}.{generation}"
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(json.dumps(who | more))


def test_one_holds_until_it_gives_back(file):
    first = run_locks.acquire(file)
    assert first is not None
    assert run_locks.acquire(file) is None
    assert run_locks.holder(file)["pid"] == os.getpid()
    assert not first.lost()
    first.release()
    assert lock_files(file) == []
    assert run_locks.holder(file) is None
    second = run_locks.acquire(file)
    assert second is not None
    second.release()


def test_runs_are_locked_one_by_one(file):
    one, other = run_locks.acquire(file), run_locks.acquire(file.with_name("fedcba9876543210.json"))
    assert one is not None
    assert other is not None
    one.release()
    assert run_locks.holder(other.file) is not None
    other.release()


def race(file):
    """Let twelve processes ask for the run, and return what each was told."""
    code = f"{HOLD} print(c is not None, flush=True); sys.stdin.read()"
    every = [
        processes.Popen(
            [sys.executable, "-c", code, str(file)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(12)
    ]
    said = [process.stdout.readline() for process in every]
    for process in every:
        process.communicate()
    return said


def test_of_many_processes_one_gets_it(file):
    assert sorted(race(file)) == ["False\n"] * 11 + ["True\n"]


@pytest.mark.skipif(not os.path.exists("/proc/self/stat"), reason="needs /proc")
def test_a_killed_holder_is_outdone_at_once(file):
    killed(file)
    mine = run_locks.acquire(file)
    assert mine is not None
    assert mine.generation == 2
    mine.release()
    assert lock_files(file) == []


@pytest.mark.skipif(not os.path.exists("/proc/self/stat"), reason="needs /proc")
def test_of_many_who_find_a_dead_lock_one_gets_it(file):
    killed(file)
    assert sorted(race(file)) == ["False\n"] * 11 + ["True\n"]


def test_a_process_id_given_to_another_process_does_not_hold(file):
    elsewhere(file, 1, machine=run_locks._machine(), pid=os.getpid(), started="0")
    mine = run_locks.acquire(file)
    assert mine is not None
    mine.release()


def test_another_machine_holds_while_it_beats(file, monkeypatch):
    now = 1000.0
    monkeypatch.setattr(run_locks.time, "monotonic", lambda: now)
    for beat in range(4):
        elsewhere(file, 1, beat=beat, token="beats")
        assert run_locks.acquire(file) is None
        assert run_locks.holder(file)["host"] == "node7"
        now += 0.9 * run_locks.LEASE
    now += 0.2 * run_locks.LEASE
    assert run_locks.holder(file) is None
    mine = run_locks.acquire(file)
    assert mine is not None
    assert mine.generation == 2
    mine.release()


def test_time_stamps_of_files_do_not_count(file):
    elsewhere(file, 1, token="old file")
    os.utime(file.parent / "claims" / f"{file.stem}.1", (0, 0))
    assert run_locks.acquire(file) is None


def test_a_holder_beats_and_learns_that_it_was_outdone(file, monkeypatch):
    monkeypatch.setattr(run_locks, "HEARTBEAT", 0.02)
    mine = run_locks.acquire(file)
    deadline = time.monotonic() + 20
    while run_locks.holder(file)["beat"] < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert run_locks.holder(file)["beat"] >= 3
    elsewhere(file, 2, token="took over")
    assert mine.lost()
    mine.release()
    assert lock_files(file) == [f"{file.stem}.2"]  # what is another's stays


def test_without_hard_links(file, monkeypatch):
    def refuse(*_):
        raise OSError(errno.EPERM, "no hard links")

    monkeypatch.setattr(os, "link", refuse)
    mine = run_locks.acquire(file)
    assert mine is not None
    assert run_locks.acquire(file) is None
    mine.release()
    # half-written by another: it may be about to write the rest
    (file.parent / "claims" / f"{file.stem}.1").write_text("")
    assert run_locks.acquire(file) is None


def test_an_answer_lost_on_the_way(file, monkeypatch):
    # NFS asks again, and hears that the name it has just made exists
    real = os.link

    def twice(a, b):
        real(a, b)
        raise FileExistsError(errno.EEXIST, "exists")

    monkeypatch.setattr(os, "link", twice)
    mine = run_locks.acquire(file)
    assert mine is not None
    mine.release()


def test_a_folder_that_cannot_be_written_is_one_line(file):
    file.parent.mkdir(parents=True)
    (file.parent / "claims").write_text("a file in its place")
    with pytest.raises(SqError, match=r"cannot lock a run in .*claims: .*correct results="):
        run_locks.acquire(file)


def test_a_holder_learns_that_its_run_was_done_by_another(file):
    mine = run_locks.acquire(file)
    # its successor, who took it for dead, has finished
    (file.parent / "claims" / f"{file.stem}.1").unlink()
    assert mine.lost()
    mine.release()


def test_listings_of_different_age_do_not_make_two_holders(file, monkeypatch):
    first = run_locks.acquire(file)
    real = run_locks._generations
    stale = iter([[7]])  # an old listing: generation 7 was given back since
    monkeypatch.setattr(run_locks, "_generations", lambda f: next(stale, None) or real(f))
    assert run_locks.acquire(file) is None
    first.release()
    elsewhere(file, 3, token="alive")
    early = iter([[]])  # another: of before anything was locked
    monkeypatch.setattr(
        run_locks, "_generations", lambda f: real(f) if next(early, None) is None else []
    )
    assert run_locks.acquire(file) is None
    assert lock_files(file) == [f"{file.stem}.3"]


def test_a_link_that_is_refused_is_no_lock_of_another(file, monkeypatch):
    def refuse(*_):
        raise OSError(errno.EACCES, "no")

    monkeypatch.setattr(os, "link", refuse)
    with pytest.raises(SqError, match="cannot lock a run"):
        run_locks.acquire(file)


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_beat_that_cannot_be_written_leaves_nothing(file, monkeypatch, step):
    refused = []

    def refuse(*_):
        refused.append(1)
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(run_locks, "HEARTBEAT", 0.01)
    mine = run_locks.acquire(file)
    with monkeypatch.context() as full:
        full.setattr(
            *(("os.fsync", refuse) if step == "fsync" else ("pathlib.Path.replace", refuse))
        )
        until = time.monotonic() + 20
        while len(refused) < 3 and time.monotonic() < until:
            time.sleep(0.01)
    assert len(refused) >= 3
    with mine._writing:
        assert lock_files(file) == [f"{file.stem}.1"]
    mine.release()
    assert lock_files(file) == []


def test_a_process_that_the_system_hides_counts_as_alive_while_it_beats(file, monkeypatch):
    # hidepid: /proc has no file of another user's process, and no signal may be sent to it
    now = 1000.0
    monkeypatch.setattr(run_locks.time, "monotonic", lambda: now)
    real = Path.read_text

    def hide(path, *args, **more):
        if path == Path("/proc/4321/stat"):
            raise FileNotFoundError(errno.ENOENT, "hidden")
        return real(path, *args, **more)

    def kill(pid, signal):
        raise (
            PermissionError(errno.EPERM, "not yours")
            if pid == 4321
            else ProcessLookupError(errno.ESRCH, "none")
        )

    monkeypatch.setattr(Path, "read_text", hide)
    monkeypatch.setattr(os, "kill", kill)
    elsewhere(file, 1, machine=run_locks._machine(), pid=4321, token="hidden")
    assert run_locks.acquire(file) is None
    now += 2 * run_locks.LEASE
    assert run_locks.holder(file) is None
    elsewhere(file, 1, machine=run_locks._machine(), pid=4321, token="hidden", beat=1)
    assert run_locks.holder(file)["pid"] == 4321
    elsewhere(file, 1, machine=run_locks._machine(), pid=999999, token="gone")
    assert run_locks.holder(file) is None
