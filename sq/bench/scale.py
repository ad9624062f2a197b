"""How sq takes thousands of runs: records made from one real one, each command timed: ``python -m sq.bench.scale``.

The records differ in their settings alone, and their layer errors a little; what is measured is sq,
not quantization.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from sq.core import closed_pipe
from sq.core.progress import out, say, track
from sq.records import record
from sq.runs import job, status
from sq.runs.sweep.expand import Job

SWEEP = """# Question  How does sq take so many runs?
# Run       python -m sq.bench.scale
defaults: [config, override correction: none, override tracker: none, _self_]
name: scale
sweep: {{max_runs: {runs}}}
hydra:
  mode: MULTIRUN
  sweeper:
    params:
      quantizer: sensiquant,gptq,rtn,sensiquant_plus,obq
      bits: 2,3,4,8
      quantizer.damp: 0.01,0.02,0.03,0.04,0.05
      seed: range({seeds})
"""
# Runs a command as Python would, and leaves the most memory it had: that of `os.wait4` counts the
# parent's as well.
PEAK = """
import atexit, re, runpy, sys
peak, *command = sys.argv[1:]
atexit.register(lambda: open(peak, "w").write(re.search(r"VmHWM:\\s*(\\d+)", open("/proc/self/status").read())[1]))
if command[0] == "-m":
    sys.argv = command[1:]
    runpy.run_module(command[1], run_name="__main__", alter_sys=True)
else:
    sys.argv = command
    runpy.run_path(command[0], run_name="__main__")
"""


@closed_pipe.quiet
def main(words: list[str] | None = None) -> int:
    """Make the records, time the commands, print a table; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m sq.bench.scale", description=__doc__)
    parser.add_argument(
        "--records", type=int, default=10_000, help="how many (default: 10,000), in hundreds"
    )
    options = parser.parse_args(words)
    if options.records < 100 or options.records % 100:
        parser.error(f"--records {options.records}: hundreds, 100 or more")
    with tempfile.TemporaryDirectory() as folder:
        measure(Path(folder), options.records)
    return 0


def measure(folder: Path, runs: int) -> None:
    """Make `runs` records in `folder`, and time each command twice: with half of them done, and with all."""
    from rich.table import Table

    (folder / "experiments").mkdir()
    text = SWEEP.format(runs=runs, seeds=runs // 100)
    (folder / "experiments" / "scale.yaml").write_text(text)
    results = folder / "results"
    jobs, _ = status.expected("scale", results, folder / "experiments")
    template, failure = job.attempt(jobs[0], wait=True)
    if template is None or failure:
        raise SystemExit(f"sq: the run that records are made from failed: {failure}")
    sweep = [
        "-m",
        "sq",
        "run",
        "-cd",
        str(folder / "experiments"),
        "-cn",
        "scale",
        f"results={results}",
    ]
    told = [
        "-m",
        "sq",
        "status",
        "scale",
        "--results",
        str(results),
        "--experiments",
        str(folder / "experiments"),
    ]
    shown = Table("command", "runs done", "seconds", "CPU seconds", "GiB")
    for done in (jobs[: runs // 2], jobs[runs // 2 :]):
        for one in track(done, "records"):
            write(one, template)
        number = f"{runs // 2 if done[0] is jobs[0] else runs:,}"
        for name, command in {
            "dry run": [*sweep, "sweep.dry_run=true"],
            "status": told,
            "report": ["-m", "sq.report", "scale", "--results", str(results)],
        }.items():
            shown.add_row(name, number, *timed(command, folder))
    out.print(shown)
    size = sum(file.stat().st_size for file in (results / "scale").glob("*.json"))
    say(f"{runs:,} records, {size / runs / 1024:.1f} KiB each")


def write(one: Job, template: record.Record) -> None:
    """Write a record of job `one`, as if it had run: its own settings, the figures of `template` give or take."""
    factor = 1 + int(hashlib.sha256(one.file.stem.encode()).hexdigest()[:4], 16) / 2**16
    results = {
        **template["results"],
        "relative_error": template["results"]["relative_error"] * factor,
    }
    made = {
        **template,
        "key": one.file.stem,
        "config": one.config,
        "choices": one.choices,
        "results": results,
    }
    one.file.parent.mkdir(parents=True, exist_ok=True)
    # not `record.write`, which waits for the disk each time
    one.file.write_text(json.dumps(made, indent=1) + "\n")


def timed(command: list[str], folder: Path) -> list[str]:
    """Run `command` in a process of its own; return its seconds, those of its CPU, and GiB at most, as words."""
    start = time.perf_counter()
    with (folder / "out").open("w") as stream:
        whole = [sys.executable, "-c", PEAK, str(folder / "peak"), *command]
        child = subprocess.Popen(whole, stdout=stream, stderr=stream, cwd=folder)
        _, state, used = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(state)
    if child.returncode not in (0, 1):  # 1: a status of which runs are missing
        raise SystemExit((folder / "out").read_text())
    seconds = time.perf_counter() - start
    kib = int((folder / "peak").read_text())
    return [f"{seconds:.1f}", f"{used.ru_utime + used.ru_stime:.1f}", f"{kib / 2**20:.2f}"]


if __name__ == "__main__":
    sys.exit(main())
