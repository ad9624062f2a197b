"""Time solvers alone and beside busy loops, in turns: ``python -m sq.bench.company``.

Each run quantizes the embedded network to 3 bits, in a process that is warmed up. In each repeat
all runs are done once with nothing else started, and once beside one endless loop a core. Writes
`record.json`, `runs.csv` and `table.md`.
"""

from __future__ import annotations

import argparse
import csv
import importlib
import itertools
import json
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from sq.core import closed_pipe

Run = dict[str, Any]
Ask = Callable[[list[str]], Run]  # does a run with these overrides

SOLVERS = ("rtn", "gptq", "sensiquant", "sensiquant_plus", "obq")
ONE_THREAD = ("sensiquant", "obq")  # solvers that are also run with threads=1
ALONE, BUSY = "alone", "beside loops"
# figures of a run: the solver's seconds, and those of the phase "quantize"
CPU, WALL = "solve_cpu_seconds", "solve_seconds"
PHASE, PHASE_CPU = "quantize_seconds", "quantize_cpu_seconds"
SHORTEST_PHASE = 0.05  # seconds: shorter phases are left out of the table
LOOP = "while True: pass"
# Earlier names of modules, as in checkouts that `--before` may name.
EARLIER = {
    "sq.core.provenance": "sq.provenance",
    "sq.runs.sweep.expand": "sq.points",
    "sq.runtime.phase_timer": "sq.clock",
    "sq.runtime.torch_setup": "sq.ready",
}
# Bounds beside loops: least speed-up of sensiquant over OBQ, and the largest ratios to the CPU
# seconds and to the seconds of the phase alone.
MIN_SPEEDUP, MAX_CPU_RATIO, MAX_PHASE_RATIO = 12.0, 1.5, 4.0


@closed_pipe.quiet
def main(arguments: list[str] | None = None) -> int:
    """Measure and write; return 0 if all bounds hold, else 1."""
    parser = argparse.ArgumentParser(prog="python -m sq.bench.company", description=__doc__)
    add = parser.add_argument
    add("--repeats", type=int, default=3, help="of every run, alone and beside loops (default: 3)")
    add("--before", type=Path, help="another checkout of sq, run in turns with this one")
    add("--results", type=Path, default=Path("results/company"), help="where files go")
    add("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.serve:
        return serve()
    if options.repeats < 1:
        parser.error(f"--repeats {options.repeats}: 1 or more")
    if options.before and not (options.before / "sq").is_dir():
        parser.error(f"--before {options.before}: no checkout of sq, which has a folder sq/")
    runs, provenance = measure(options.repeats, options.before)
    record = {"provenance": provenance, "repeats": options.repeats, "runs": runs}
    options.results.mkdir(parents=True, exist_ok=True)
    (options.results / "record.json").write_text(json.dumps(record, indent=1) + "\n")
    _write_csv(runs, options.results / "runs.csv")
    text, holds = report(record)
    (options.results / "table.md").write_text(text)
    from sq.core.progress import out

    out.print(text, soft_wrap=True)
    return 0 if holds else 1


def _write_csv(runs: list[Run], path: Path) -> None:
    """Write one line a run, without its seconds by phase."""
    columns = [name for name, value in runs[0].items() if not isinstance(value, dict)]
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(runs)


def measure(repeats: int, before: Path | None) -> tuple[list[Run], dict[str, Any]]:
    """Do all runs; return them in order, and the provenance of this checkout's.

    Parameters
    ----------
    before : another checkout that is measured in turns with this one
    """
    from sq.core.paths import PACKAGE
    from sq.core.progress import track

    checkouts = {"this": PACKAGE.parent}
    if before:
        checkouts["before"] = before.resolve()
    kinds = _kinds(list(checkouts))
    runs: list[Run] = []
    order = random.Random(0)
    with ExitStack() as stack:
        servers = {}
        provenance: dict[str, Any] = {}
        for code, folder in checkouts.items():
            ask = servers[code] = stack.enter_context(serving(folder))
            # A warm-up: imports, memory, the start of libraries.
            first = ask(["quantizer=gptq"])
            ask(["quantizer=sensiquant"])
            if code == "this":
                provenance = first["provenance"]
        turns = list(itertools.product(range(repeats), (ALONE, BUSY)))
        for repeat, beside in track(turns, "turns", len(turns)):
            with busy(os.cpu_count() or 1) if beside == BUSY else ExitStack():
                # In random order, so that no run always follows the same one.
                for code, solver, threads in order.sample(kinds, len(kinds)):
                    load = os.getloadavg()[0]  # of the last minute
                    figures = servers[code]([f"quantizer={solver}", f"threads={threads or 'null'}"])
                    figures.pop("provenance")
                    settings = {
                        "repeat": repeat,
                        "beside": beside,
                        "code": code,
                        "quantizer": solver,
                        "threads": threads or "default",
                        "load": round(load, 2),
                    }
                    runs.append(settings | figures)
    return runs, provenance


def _kinds(checkouts: list[str]) -> list[tuple[str, str, int | None]]:
    """Return checkout, solver and threads of each run of a turn; None: threads by default."""
    kinds: list[tuple[str, str, int | None]] = []
    kinds += itertools.product(("this",), SOLVERS, (None,))
    kinds += itertools.product(("this",), ONE_THREAD, (1,))
    if "before" in checkouts:
        kinds += itertools.product(("before",), SOLVERS, (None,))
    return kinds


@contextmanager
def busy(number: int) -> Iterator[None]:
    """Run `number` processes that do nothing but use a core each."""
    loops = [subprocess.Popen([sys.executable, "-S", "-c", LOOP]) for _ in range(number)]
    try:
        time.sleep(1.0)  # until they have started
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


@contextmanager
def serving(code: Path) -> Iterator[Ask]:
    """Start a process that does runs with the `code` of a checkout; give the function to ask it."""
    # By its text, as a file would put its folder before Python's own modules.
    command = [sys.executable, "-c", Path(__file__).read_text(), "--serve"]
    with subprocess.Popen(
        command,
        cwd=code,
        env=os.environ | {"PYTHONPATH": str(code)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        requests, replies = child.stdin, child.stdout

        def ask(overrides: list[str]) -> Run:
            requests.write(json.dumps(overrides) + "\n")
            requests.flush()
            line = replies.readline()
            if not line:
                raise SystemExit(f"sq: the process that runs {code} ended; see above")
            return json.loads(line)

        try:
            yield ask
        except BaseException:
            child.kill()
            raise


def serve() -> int:
    """Do the runs that standard input asks for; write the figures of each to standard output.

    Only what every version of sq has is used, so that one file measures several.
    """
    # Whatever a run prints goes to standard error.
    replies, sys.stdout = sys.stdout, sys.stderr
    torch_setup = _module("sq.runtime.torch_setup")
    torch_setup.import_torch()
    import hydra

    from sq import api, pipeline

    provenance = _module("sq.core.provenance")
    expand = _module("sq.runs.sweep.expand")
    cpu = _cpu_seconds_of_phases(_module("sq.runtime.phase_timer"))
    # No cache: every run has to collect its statistics.
    fixed = ["bits=3", "cache=null", "tracker=none", "correction=batchnorm"]
    for line in sys.stdin:
        overrides = [*json.loads(line), *fixed]
        with api._own_hydra():
            config = expand.resolve(hydra.compose("config", overrides, return_hydra_config=True))
        cpu.clear()
        device = torch_setup.prepare(config)
        record = pipeline.run(config, device)
        results, seconds = record["results"], record["seconds"]
        figures = {
            "solve_seconds": results["solve_seconds"],
            "solve_cpu_seconds": results.get("solve_cpu_seconds"),
            "quantize_seconds": seconds["quantize"],
            "quantize_cpu_seconds": cpu["quantize"],
            "run_seconds": sum(seconds.values()),
            "run_cpu_seconds": sum(cpu.values()),
            "codes": results["codes"],
            "relative_error": results["relative_error"],
            "seconds": seconds,
            "cpu_seconds": dict(cpu),
            "provenance": provenance.collect(device),
        }
        replies.write(json.dumps(figures) + "\n")
        replies.flush()
    return 0


def _cpu_seconds_of_phases(phase_timer: Any) -> dict[str, float]:
    """Return a dict that will have the CPU seconds of each phase: the module's clock is patched."""
    cpu: dict[str, float] = {}
    original = phase_timer.Clock.phase

    @contextmanager
    def phase(self: Any, name: str) -> Iterator[None]:
        start = time.process_time()
        with original(self, name):
            yield
        cpu[name] = cpu.get(name, 0.0) + time.process_time() - start

    phase_timer.Clock.phase = phase
    return cpu


def _module(name: str) -> Any:
    """Import the module `name`, by its `EARLIER` name in a checkout from before it moved.

    The earlier name comes first: where sq is installed for editing, a module that an earlier
    checkout lacks would be imported from the installation.
    """
    try:
        return importlib.import_module(EARLIER[name])
    except ModuleNotFoundError:
        return importlib.import_module(name)


class _Medians:
    """Medians of the runs of a record."""

    def __init__(self, runs: list[Run]):
        self.runs = runs

    def __call__(
        self, what: str, beside: str, name: str, *, code: str = "this", threads: Any = "default"
    ) -> float:
        """Return the median of figure `what` of a solver; "seconds.load" is that of a phase."""
        wanted = {"beside": beside, "quantizer": name, "code": code, "threads": threads}
        figure, _, phase = what.partition(".")
        values = [run[figure] for run in self.runs if wanted.items() <= run.items()]
        if phase:
            values = [seconds[phase] for seconds in values]
        return statistics.median(values)

    def slowdown(self, what: str, name: str) -> float:
        """Return figure `what` of solver `name` beside loops, over that of the same alone."""
        return self(what, BUSY, name) / self(what, ALONE, name)


def report(record: dict[str, Any]) -> tuple[str, bool]:
    """Return the report of a record as Markdown, and whether all bounds hold."""
    runs, provenance = record["runs"], record["provenance"]
    median = _Medians(runs)
    bounds = _bounds(runs, median)
    lines = [
        "# Times beside other work",
        "",
        f"Embedded network, 3 bits, {provenance['processor']}, {provenance['threads']} threads, "
        f"medians of {record['repeats']}. Load before a run: {_range(runs, ALONE)} alone, "
        f"{_range(runs, BUSY)} beside one loop a core.",
        "Solve: summed over layers; phase: layers side by side, grids included; "
        "x: as a multiple of the same alone.",
        "Speed-up over OBQ: by CPU seconds of the solve, and by seconds of the phase.",
        "",
        *_solver_table(median),
        "",
    ]
    for text, holds in bounds.items():
        lines.append(f"- {'holds' if holds else 'FAILS'}: {text}")
    lines += ["", "## Phases, with threads as they are by default and with one", ""]
    lines += _phase_table(median, list(runs[0]["seconds"]))
    if any(run["code"] == "before" for run in runs):
        lines += ["", "## This code and the one before it, in turns", ""]
        lines += _before_table(median)
    return "\n".join(lines) + "\n", all(bounds.values())


def _solver_table(median: _Medians) -> Iterator[str]:
    """Yield the lines of the table of solvers, alone and beside loops."""
    yield (
        "| method | beside | solve CPU s | x | solve s | phase s | x "
        "| speed-up, CPU | speed-up, phase |"
    )
    yield "|:--|:--|--:|--:|--:|--:|--:|--:|--:|"
    for name, beside in itertools.product(SOLVERS, (ALONE, BUSY)):
        cpu = median(CPU, beside, name)
        phase = median(PHASE, beside, name)
        cells = [
            name,
            beside,
            f"{cpu:.3f}",
            f"{cpu / median(CPU, ALONE, name):.2f}",
            f"{median(WALL, beside, name):.3f}",
            f"{phase:.3f}",
            f"{phase / median(PHASE, ALONE, name):.2f}",
            f"{median(CPU, beside, 'obq') / cpu:.1f}",
            f"{median(PHASE, beside, 'obq') / phase:.1f}",
        ]
        yield _line(cells)


def _bounds(runs: list[Run], median: _Medians) -> dict[str, bool]:
    """Return each bound in words, and whether it holds."""
    speedup = median(CPU, BUSY, "obq") / median(CPU, BUSY, "sensiquant")
    cpu_ratio = max(median.slowdown(CPU, name) for name in SOLVERS)
    phase_ratio = max(median.slowdown(PHASE, name) for name in SOLVERS)
    codes = {(run["quantizer"], run["codes"]) for run in runs if run["code"] == "this"}
    speedup_text = (
        f"beside loops sensiquant takes 1/{MIN_SPEEDUP:g} of obq's CPU seconds or less: "
        f"1/{speedup:.1f}"
    )
    beside = "beside loops are {:g} times those alone or less: {:.2f}"
    cpu_text = f"CPU seconds {beside}".format(MAX_CPU_RATIO, cpu_ratio)
    phase_text = f"seconds of the phase {beside}".format(MAX_PHASE_RATIO, phase_ratio)
    codes_text = "codes are the same in all runs, whatever the threads and the load"
    return {
        speedup_text: speedup >= MIN_SPEEDUP,
        cpu_text: cpu_ratio <= MAX_CPU_RATIO,
        phase_text: phase_ratio <= MAX_PHASE_RATIO,
        codes_text: len(codes) == len(SOLVERS),
    }


def _phase_table(median: _Medians, phases: list[str]) -> Iterator[str]:
    """Yield the lines of the table of phases, with all threads and with one."""
    yield (
        "| method | beside | phase | default s | one thread s | default CPU s | one thread CPU s |"
    )
    yield "|:--|:--|:--|--:|--:|--:|--:|"
    for name, beside, phase in itertools.product(ONE_THREAD, (ALONE, BUSY), phases):
        times = []
        for figure in (f"seconds.{phase}", f"cpu_seconds.{phase}"):
            times.append(median(figure, beside, name))
            times.append(median(figure, beside, name, threads=1))
        if max(times[:2]) >= SHORTEST_PHASE:
            yield _line([name, beside, phase, *map("{:.3f}".format, times)])


def _before_table(median: _Medians) -> Iterator[str]:
    """Yield the lines of the table of this code and the one before it."""
    yield (
        "| method | beside | phase s, before | phase s | phase CPU s, before | phase CPU s "
        "| run s, before | run s |"
    )
    yield "|:--|:--|--:|--:|--:|--:|--:|--:|"
    for name, beside in itertools.product(SOLVERS, (ALONE, BUSY)):
        times = []
        for figure in (PHASE, PHASE_CPU, "run_seconds"):
            times.append(median(figure, beside, name, code="before"))
            times.append(median(figure, beside, name))
        yield _line([name, beside, *map("{:.3f}".format, times)])


def _line(cells: list[str]) -> str:
    """Return a line of a table in Markdown."""
    return f"| {' | '.join(cells)} |"


def _range(runs: list[Run], beside: str) -> str:
    loads = [run["load"] for run in runs if run["beside"] == beside]
    return f"{min(loads):.1f} to {max(loads):.1f}"


if __name__ == "__main__":
    sys.exit(main())
