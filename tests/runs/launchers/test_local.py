"""Several runs at a time on this machine: shared out fairly, a process that dies costs its run alone."""

import json
import os
import signal
import subprocess
import time

import processes
import pytest
from cli_helpers import PATIENCE, call, command, compose, environment, records, settings

from sq.core import cpu_cores
from sq.records import record, run_locks
from sq.runs.launchers import local
from sq.runs.sweep.expand import Job

TWO = ["hydra/launcher=local", "hydra.launcher.processes=2"]
SLOW = "quantizer=obq"  # long enough to be caught at work


def start(folder, *words):
    named = {word.split("=")[0] for word in words}
    return processes.Popen(
        command(
            folder, *(word for word in TWO if word.split("=")[0] not in named), *words, sweep=True
        ),
        cwd=folder,
        env=environment(folder),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def holders(folder, number):
    """Return the process ids that hold `number` claims, as soon as there are so many."""
    claims = folder / "results" / "runs" / "claims"
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until:
        try:
            found = [json.loads(place.read_text())["pid"] for place in claims.glob("*.1")]
        except FileNotFoundError:
            continue
        if len(found) >= number:
            return found
        time.sleep(0.02)
    raise AssertionError("no run began")


def test_runs_at_a_time_leave_the_records_of_runs_one_by_one(tmp_path):
    words = ["quantizer=rtn,gptq", "bits=4,3"]
    together, alone = tmp_path / "together", tmp_path / "alone"
    together.mkdir(), alone.mkdir()
    with start(together, *words) as sweeping:
        told, _ = sweeping.communicate(timeout=PATIENCE)
    assert sweeping.returncode == 0, told
    assert "2 processes on this machine" in told
    assert sum(f"[{number}/4] " in told for number in range(1, 5)) == 4
    assert call(alone, *words, sweep=True).returncode == 0
    of_both = [
        {r["key"]: r["results"]["codes"] for r in records(folder)} for folder in (together, alone)
    ]
    assert len(of_both[0]) == 4
    assert of_both[0] == of_both[1]
    processes = {
        text
        for f in (together / "outputs" / "runs").glob("*.log")
        for text in f.read_text().split(" process ")[1:]
    }
    assert len({text.split()[0] for text in processes}) == 2, "both processes had a part"


def test_killed_process_costs_its_run_alone_and_is_replaced(tmp_path):
    words = [SLOW, "bits=4,3,2"]
    with start(tmp_path, *words) as sweeping:
        victim = holders(tmp_path, 2)[0]
        until = time.monotonic() + PATIENCE
        while (
            sum(
                "GFLOP" in log.read_text()
                for log in (tmp_path / "outputs" / "local").glob("*/*.log")
            )
            < 2
        ):
            assert time.monotonic() < until
            time.sleep(0.02)
        os.kill(victim, signal.SIGKILL)
        told, _ = sweeping.communicate(timeout=PATIENCE)
    assert sweeping.returncode == 1, told
    assert "2 of 3 runs done, 1 failed" in told
    (failed,) = [r for r in records(tmp_path) if r["status"] == "failed"]
    assert failed["error"].startswith("its process was killed by signal 9 (SIGKILL)")
    assert "GFLOP" in failed["traceback"], "what the process printed last is kept"
    assert list((tmp_path / "results" / "runs" / "claims").iterdir()) == []
    done = call(tmp_path, *words, sweep=True)
    assert done.returncode == 0
    assert "3 runs, 2 done, 1 to do, 1 failed" in done.stderr


class Deadly(Job):
    """A job that ends the process it comes to."""

    def __reduce__(self):
        return os._exit, (3,)


def test_no_process_is_started_where_nothing_is_left_to_do(tmp_path, monkeypatch):
    started, start = [], local._start
    monkeypatch.setattr(local, "_start", lambda *given: started.append(given) or start(*given))
    (ended,) = local.run(
        [Deadly([], {"device": "cpu", "threads": 1}, {})], {"processes": 1, "folder": str(tmp_path)}
    )
    assert ended.cause == "its process ended with exit code 3"
    assert len(started) == 1


def test_interrupt_ends_all_processes_at_once(tmp_path):
    with start(tmp_path, SLOW, "bits=5,4") as sweeping:
        workers = holders(tmp_path, 2)
        os.killpg(sweeping.pid, signal.SIGINT)
        told, _ = sweeping.communicate(timeout=PATIENCE)
    assert sweeping.returncode == 130
    assert told.splitlines()[-1].startswith("sq: interrupted")
    assert "Traceback" not in told
    for pid in workers:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
    assert not list((tmp_path / "results" / "runs").glob("*.json"))


def test_run_of_another_launcher_is_waited_for_at_the_end(tmp_path):
    config, _ = compose(*settings(tmp_path), "bits=4")
    held = run_locks.acquire(record.path(config))
    with start(tmp_path, "bits=4,3") as sweeping:
        until = time.monotonic() + PATIENCE
        while not list((tmp_path / "results" / "runs").glob("*.json")):
            assert time.monotonic() < until
            time.sleep(0.05)
        assert not record.path(config).exists()
        held.release()
        told, _ = sweeping.communicate(timeout=PATIENCE)
    assert sweeping.returncode == 0, told
    assert "2 of 2 runs done, 0 failed" in told


def job(device="auto", threads=None):
    return Job([], {"device": device, "threads": threads}, {})


def test_processes_share_gpus_and_cores(monkeypatch):
    monkeypatch.setattr(cpu_cores, "own", lambda: 8)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2, GPU-7f")
    eight = [job() for _ in range(8)]
    assert local.environments(eight, None) == [
        {"OMP_NUM_THREADS": "4", "CUDA_VISIBLE_DEVICES": "2"},
        {"OMP_NUM_THREADS": "4", "CUDA_VISIBLE_DEVICES": "GPU-7f"},
    ]
    assert [place["CUDA_VISIBLE_DEVICES"] for place in local.environments(eight, 4)] == [
        "2",
        "GPU-7f",
        "2",
        "GPU-7f",
    ]
    assert local.environments([job("cpu")] * 8, None) == [{"OMP_NUM_THREADS": "4"}] * 2
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert local.environments(eight, None) == [{"OMP_NUM_THREADS": "4"}] * 2
    assert local.environments([job(threads=1)] * 8, None) == [{"OMP_NUM_THREADS": "1"}] * 8
    assert local.environments([job(threads=16)] * 8, None) == [{"OMP_NUM_THREADS": "8"}]
    assert local.environments([job()], 5) == [{"OMP_NUM_THREADS": "8"}], (
        "no more processes than runs"
    )


def test_threads_that_are_exported_do_not_take_processes_away(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)))
    monkeypatch.delenv("SLURM_CPUS_PER_TASK", raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert local.environments([job("cpu")] * 99, None) == [{"OMP_NUM_THREADS": "4"}] * 16
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "8")
    assert local.environments([job("cpu")] * 99, None) == [{"OMP_NUM_THREADS": "4"}] * 2


def test_two_commands_at_a_time_print_to_files_of_their_own(tmp_path):
    one = "hydra.launcher.processes=1"
    commands = [start(tmp_path, "bits=4,3", one), start(tmp_path, "bits=5,2", one)]
    for sweeping in commands:
        told, _ = sweeping.communicate(timeout=PATIENCE)
        assert sweeping.returncode == 0, told
    folders = list((tmp_path / "outputs" / "local").iterdir())
    assert len(folders) == 2
    for folder in folders:
        (log,) = folder.iterdir()
        assert log.name == "0.log"
        assert log.read_text().count("relative error") == 2


class Dead:
    """A process that has ended."""

    exitcode = -signal.SIGKILL

    def join(self):
        pass


def test_last_words_are_those_of_the_process_that_died(tmp_path):
    log = tmp_path / "0.log"
    worker = local.Worker({}, log, 0, Dead(), None)
    cause, said = local._death(worker)
    assert cause.startswith("its process was killed by signal 9 (SIGKILL)")
    assert said == "", "it may die before it opens its log"
    log.write_text("of the one before\nof this one\n")
    worker.log_start = len("of the one before\n")
    assert local._death(worker)[1] == "of this one\n"


class Line:
    """The end of a line to a process that is given one job."""

    def __init__(self, closed=False):
        self.closed, self.sent = closed, []
        self.jobs = [("job", False)]

    def recv(self):
        if not self.jobs:
            raise EOFError
        return self.jobs.pop()

    def send(self, answer):
        if self.closed:
            raise BrokenPipeError
        self.sent.append(answer)


@pytest.mark.parametrize("error", [OSError("disk"), EOFError("cut")])
def test_error_in_a_run_is_not_the_end_of_the_sweep(error):
    def finish(one, wait):
        raise error

    line = Line()
    with pytest.raises(type(error)):
        local._serve(line, finish)
    assert line.sent == []


@pytest.mark.parametrize("closed", [True, False])
def test_end_of_the_line_ends_a_process(closed):
    line = Line(closed)
    local._serve(line, lambda one, wait: True)
    assert line.sent == ([] if closed else [True])


def test_cores_of_a_process(monkeypatch):
    for name in ("SLURM_CPUS_PER_TASK", "OMP_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    assert (cpu_cores.own(), cpu_cores.available()) == (8, 8)
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "4")
    assert (cpu_cores.own(), cpu_cores.available()) == (4, 4)
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert (cpu_cores.own(), cpu_cores.available()) == (4, 2)
    monkeypatch.setenv("OMP_NUM_THREADS", "0")
    assert (cpu_cores.own(), cpu_cores.available()) == (4, 1)
