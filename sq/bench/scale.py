"""Time commands of sq on thousands of records: ``python -m sq.bench.scale``.

The records are copies of a real one with other settings and slightly other layer errors. What is
measured is sq, not quantization.
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
# Runs a command as Python would, and writes its peak memory to a file: that of `os.wait4` includes
# the parent's.
PEAK = """
import atexit, re, runpy, sys
peak, *command = sys.argv[1:]
def leave():
    status = open("/proc/self/status").read()
    open(peak, "w").write(re.search(r"VmHWM:\\s*(\\d+)", status)[1])
atexit.register(leave)
if command[0] == "-m":
    sys.argv = command[1:]
    runpy.run_module(command[1], run_name="__main__", alter_sys=True)
else:
    sys.argv = command
    runpy.run_path(command[0], run_name="__main__")
"""


@closed_pipe.quiet
def main(arguments: list[str] | None = None) -> int:
    """Make the records, time the commands, print a table; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m sq.bench.scale", description=__doc__)
    parser.add_argument(
        "--records", type=int, default=10_000, help="how many (default: 10,000), in hundreds"
    )
    options = parser.parse_args(arguments)
    if options.records < 100 or options.records % 100:
        parser.error(f"--records {options.records}: hundreds, 100 or more")
    with tempfile.TemporaryDirectory() as folder:
        measure(Path(folder), options.records)
    return 0


def measure(folder: Path, runs: int) -> None:
    """Write `runs` records to `folder`; time each command with half of them, and with all."""
    from rich.table import Table

    experiments, results = folder / "experiments", folder / "results"
    experiments.mkdir()
    text = SWEEP.format(runs=runs, seeds=runs // 100)
    (experiments / "scale.yaml").write_text(text)
    jobs, _ = status.expected("scale", results, experiments)
    template, failure = job.attempt(jobs[0], wait=True)
    if template is None or failure:
        raise SystemExit(f"sq: the run that records are made from failed: {failure}")
    commands = _commands(experiments, results)
    table = Table("command", "runs done", "seconds", "CPU seconds", "GiB")
    written = 0
    for half in (jobs[: runs // 2], jobs[runs // 2 :]):
        for new in track(half, "records"):
            write(new, template)
        written += len(half)
        for name, command in commands.items():
            table.add_row(name, f"{written:,}", *timed(command, folder))
    out.print(table)
    size = sum(file.stat().st_size for file in (results / "scale").glob("*.json"))
    say(f"{runs:,} records, {size / runs / 1024:.1f} KiB each")


def _commands(experiments: Path, results: Path) -> dict[str, list[str]]:
    """Return the arguments of Python for each command that is timed, by name."""
    sweep = ["-m", "sq", "run", "-cd", str(experiments), "-cn", "scale", f"results={results}"]
    where = ["--results", str(results)]
    return {
        "dry run": [*sweep, "sweep.dry_run=true"],
        "status": ["-m", "sq", "status", "scale", *where, "--experiments", str(experiments)],
        "report": ["-m", "sq.report", "scale", *where],
    }


def write(new: Job, template: record.Record) -> None:
    """Write a record of job `new` as if it had run: its settings, and figures like `template`'s."""
    digest = hashlib.sha256(new.file.stem.encode()).hexdigest()
    factor = 1 + int(digest[:4], 16) / 2**16  # 1 to 2
    error = template["results"]["relative_error"] * factor
    copy = {
        **template,
        "key": new.file.stem,
        "config": new.config,
        "choices": new.choices,
        "results": {**template["results"], "relative_error": error},
    }
    new.file.parent.mkdir(parents=True, exist_ok=True)
    # Not with `record.write`, which waits for the disk each time.
    new.file.write_text(json.dumps(copy, indent=1) + "\n")


def timed(command: list[str], folder: Path) -> list[str]:
    """Run `command` in its own process; return its seconds, CPU seconds and peak GiB, as text."""
    start = time.perf_counter()
    with (folder / "out").open("w") as stream:
        arguments = [sys.executable, "-c", PEAK, str(folder / "peak"), *command]
        child = subprocess.Popen(arguments, stdout=stream, stderr=stream, cwd=folder)
        _, state, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(state)
    if child.returncode not in (0, 1):  # 1: `sq status` found that runs are missing
        raise SystemExit((folder / "out").read_text())
    seconds = time.perf_counter() - start
    cpu_seconds = usage.ru_utime + usage.ru_stime
    kib = int((folder / "peak").read_text())
    return [f"{seconds:.1f}", f"{cpu_seconds:.1f}", f"{kib / 2**20:.2f}"]


if __name__ == "__main__":
    sys.exit(main())
