"""Sweeps on a real SLURM of one node: jobs killed, the launcher killed, jobs preempted; the same command ends it.

`slurm/one_node.sh start DIR` provides one; CI does that, and there nothing here may be skipped.
"""

import os
import re
import signal
import subprocess
import time

import processes
import pytest
from cli_helpers import PATIENCE, ROOT, call, command, environment, records, run

from sq.report import table

ON = ["hydra/launcher=slurm", "hydra.launcher.cpus_per_task=1", "hydra.launcher.poll_s=2"]
EIGHT = ["quantizer=obq,rtn", "bits=5,4,3,2"]  # obq takes long enough to be caught at work
pytestmark = pytest.mark.timeout(3 * PATIENCE)


@pytest.fixture(scope="module", autouse=True)
def _cluster():
    try:
        nodes = subprocess.run(
            ["sinfo", "-h", "-o", "%t"], capture_output=True, text=True, check=False, timeout=60
        ).stdout
    except OSError:
        nodes = ""
    if not re.match("idle|mix|alloc", nodes):
        assert "CI" not in os.environ, "CI is to start a SLURM first"
        pytest.skip("no SLURM here: slurm/one_node.sh start DIR, as root")


def slurm(folder, *words):
    return run(folder, *ON, *words, sweep=True, PYTHONPATH=str(ROOT))


def launch(folder, *words):
    """Start a sweep on the cluster and do not wait for it."""
    return processes.Popen(
        command(folder, *ON, *words, sweep=True),
        cwd=folder,
        env=environment(folder, PYTHONPATH=str(ROOT)),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def at_work(folder, besides=()):
    """Return the SLURM job that does a run now, by the run's claim."""
    claims = folder / "results" / "runs" / "claims"
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until:
        for place in claims.glob("*.1"):
            try:
                if (found := re.search(r'"job": "(\d+(?:_\d+)?)"', place.read_text())) and found[
                    1
                ] not in besides:
                    return found[1]
            except FileNotFoundError:
                continue
        time.sleep(0.05)
    raise AssertionError("no task began")


def begun(folder):
    """Return how often each run was begun, and how often it came to an end, by its log."""
    logs = [file.read_text() for file in (folder / "outputs" / "runs").glob("*.log")]
    return sorted((text.count(" begun on "), text.count(" ended: done")) for text in logs)


def test_killed_job_and_killed_launcher_and_the_same_command_completes_the_sweep(tmp_path):
    with launch(tmp_path, *EIGHT) as sweeping:
        subprocess.run(["scancel", at_work(tmp_path)], check=True)
        os.killpg(sweeping.pid, signal.SIGKILL)
    done = slurm(tmp_path, *EIGHT, "hydra.launcher.max_array=3")
    assert done.returncode == 0, done.stderr
    assert "8 of 8 runs done, 0 failed" in done.stderr
    assert begun(tmp_path) in ([(1, 1)] * 7 + [(2, 1)], [(1, 1)] * 8), "a run was done twice"
    here = tmp_path / "here"
    here.mkdir()
    assert call(here, *EIGHT, sweep=True).returncode == 0
    times = ["solve s", "speed-up"]
    of_slurm, of_here = (
        table.build(records(own)).drop(columns=times).to_markdown() for own in (tmp_path, here)
    )
    assert of_slurm == of_here
    again = slurm(tmp_path, *EIGHT)
    assert "8 runs, 8 done, 0 to do" in again.stderr


def test_killed_job_is_recorded_and_a_preempted_one_goes_on(tmp_path):
    words = ["quantizer=obq", "bits=5,4,3"]
    with launch(tmp_path, *words) as sweeping:
        killed = at_work(tmp_path)
        subprocess.run(["scancel", killed], check=True)
        # as for preemption
        subprocess.run(["scancel", "--signal=USR2", at_work(tmp_path, [killed])], check=True)
        told, _ = sweeping.communicate(timeout=PATIENCE)
    assert sweeping.returncode == 1, told
    made = records(tmp_path)
    failed = [r for r in made if r["status"] == "failed"]
    assert len(made) == 3
    assert len(failed) == 1
    assert re.search(r"SLURM job \d+_\d ended as CANCELLED.*its log: ", failed[0]["error"])
    assert "Bypassing signal SIGTERM" in failed[0]["traceback"], "the end of the task's log is kept"
    assert failed[0]["error"] in told
    assert "2 of 3 runs done, 1 failed" in told
    assert sum(times for times, _ in begun(tmp_path)) == 4, "the preempted run was begun again"
    assert slurm(tmp_path, *words).returncode == 0
    assert sum(times for times, _ in begun(tmp_path)) == 5


def test_killed_task_costs_the_run_it_was_doing_alone(tmp_path):
    words = ["quantizer=obq", "bits=5,4,3"]
    with launch(tmp_path, *words, "hydra.launcher.runs_per_task=3") as sweeping:
        subprocess.run(["scancel", at_work(tmp_path)], check=True)
        told, _ = sweeping.communicate(timeout=PATIENCE)
    assert sweeping.returncode == 1, told
    (failed,) = records(tmp_path)
    assert "ended as CANCELLED" in failed["error"]
    assert len([line for line in told.splitlines() if ": not done: SLURM job " in line]) == 2
    log = (tmp_path / "outputs" / "runs" / f"{failed['key']}.log").read_text()
    assert f"ERROR failed: {failed['error']}" in log
    again = slurm(tmp_path, *words, "sweep.retry=none", "hydra.launcher.runs_per_task=3")
    assert "3 runs, 0 done, 2 to do, 1 failed" in again.stderr, (
        "those it had not come to are tried all the same"
    )
    assert "2 of 3 runs done, 1 failed" in again.stderr


def test_failing_run_among_others_and_several_runs_a_task(tmp_path):
    done = slurm(tmp_path, "calibration.images=32,100000,48", "hydra.launcher.runs_per_task=3")
    assert done.returncode == 1
    assert "1 task of SLURM job" in done.stderr
    assert "2 of 3 runs done, 1 failed" in done.stderr
    cause = "calibration.images=100000: allowed are 1 to 1201, the size of the training split"
    # when it ended, and in the summary
    assert sum(cause in line for line in done.stderr.splitlines()) == 2


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("hydra.launcher.partition=gpus", "partitions here: main"),
        ("hydra.launcher.mem_gb=100000", "SLURM refused the jobs: "),
    ],
)
def test_what_slurm_refuses_is_one_line(word, expected, tmp_path):
    done = slurm(tmp_path, word)
    assert done.returncode == 1
    assert expected in done.stderr.splitlines()[-1]
    assert done.stderr.splitlines()[-1].startswith("sq: ")
    assert "Traceback" not in done.stderr
    assert not list((tmp_path / "results").rglob("*.json"))
