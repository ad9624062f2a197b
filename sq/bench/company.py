"""Times beside other work: solvers alone and beside busy loops, in turns: ``python -m sq.bench.company``.

Every run is one of the embedded network at 3 bits, in a process that has run it before. In each
repeat all runs are made once with nothing else started, and once beside one endless loop a core.
Leaves `record.json`, `runs.csv` and `table.md`.
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
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from sq.core import closed_pipe

Run = dict[str, Any]

SOLVERS = ("rtn", "gptq", "sensiquant", "sensiquant_plus", "obq")
ONE_THREAD = ("sensiquant", "obq")  # are also run with threads=1
ALONE, BUSY = "alone", "beside loops"
# figures of a run
CPU, PHASE, SECONDS = "solve_cpu_seconds", "quantize_seconds", ("seconds", "cpu_seconds")
LEAST = 0.05  # seconds: a phase that takes less says nothing
LOOP = "while True: pass"
# Modules as they were called in earlier checkouts, which `--before` names.
EARLIER = {
    "sq.core.provenance": "sq.provenance",
    "sq.runs.sweep.expand": "sq.points",
    "sq.runtime.phase_timer": "sq.clock",
    "sq.runtime.torch_setup": "sq.ready",
}
# What has to hold beside loops: speed-up of sensiquant over OBQ, and multiples of what the same
# takes alone.
SPEEDUP, CPU_TIMES, WALL_TIMES = 12.0, 1.5, 4.0


@closed_pipe.quiet
def main(words: list[str] | None = None) -> int:
    """Measure and write; return 0 if all that has to hold does, else 1."""
    parser = argparse.ArgumentParser(prog="python -m sq.bench.company", description=__doc__)
    parser.add_argument(
        "--repeats", type=int, default=3, help="of every run, alone and beside loops (default: 3)"
    )
    parser.add_argument(
        "--before", type=Path, help="another checkout of sq, run in turns with this one"
    )
    parser.add_argument(
        "--results", type=Path, default=Path("results/company"), help="where files go"
    )
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(words)
    if options.serve:
        return serve()
    if options.repeats < 1:
        parser.error(f"--repeats {options.repeats}: 1 or more")
    if options.before and not (options.before / "sq").is_dir():
        parser.error(f"--before {options.before}: no checkout of sq, which has a folder sq/")
    runs, where = measure(options.repeats, options.before)
    made = {"provenance": where, "repeats": options.repeats, "runs": runs}
    options.results.mkdir(parents=True, exist_ok=True)
    (options.results / "record.json").write_text(json.dumps(made, indent=1) + "\n")
    with (options.results / "runs.csv").open("w", newline="") as file:
        lines = [{k: v for k, v in run.items() if not isinstance(v, dict)} for run in runs]
        writer = csv.DictWriter(file, list(lines[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(lines)
    from sq.core.progress import out

    text, holds = report(made)
    (options.results / "table.md").write_text(text)
    out.print(text, soft_wrap=True)
    return 0 if holds else 1


def measure(repeats: int, before: Path | None) -> tuple[list[Run], dict[str, Any]]:
    """Return all runs, in the order they were made, and where they were made."""
    from sq.core.paths import PACKAGE
    from sq.core.progress import track

    kinds = [("this", name, None) for name in SOLVERS] + [("this", name, 1) for name in ONE_THREAD]
    kinds += [("before", name, None) for name in SOLVERS] if before else []
    runs: list[Run] = []
    draw = random.Random(0)
    with ExitStack() as stack:
        codes = {"this": PACKAGE.parent} | ({"before": before.resolve()} if before else {})
        ask = {name: stack.enter_context(serving(place)) for name, place in codes.items()}
        where: dict[str, Any] = {}
        for code in codes:  # a warm-up: imports, memory, the libraries' start
            where |= ask[code](["quantizer=gptq"])["provenance"] if code == "this" else {}
            ask[code](["quantizer=sensiquant"])
        turns = [(number, beside) for number in range(repeats) for beside in (ALONE, BUSY)]
        for number, beside in track(turns, "turns", len(turns)):
            with busy(os.cpu_count() or 1) if beside == BUSY else ExitStack():
                for code, name, threads in draw.sample(kinds, len(kinds)):
                    load = os.getloadavg()[0]
                    found = ask[code]([f"quantizer={name}", f"threads={threads or 'null'}"])
                    found.pop("provenance")
                    about = {"repeat": number, "beside": beside, "code": code, "quantizer": name}
                    runs.append(
                        about | {"threads": threads or "default", "load": round(load, 2)} | found
                    )
    return runs, where


@contextmanager
def busy(number: int) -> Iterator[None]:
    """Have `number` processes that do nothing but use a core."""
    loops = [subprocess.Popen([sys.executable, "-S", "-c", LOOP]) for _ in range(number)]
    try:
        time.sleep(1.0)  # until they have begun
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


@contextmanager
def serving(code: Path) -> Iterator[Any]:
    """Start a process that runs what it is asked for with the `code` of a checkout; give what asks it."""
    # Not as a file: its folder would come before Python's own modules.
    command = [sys.executable, "-c", Path(__file__).read_text(), "--serve"]
    place = os.environ | {"PYTHONPATH": str(code)}
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=code, env=place, **pipes) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        requests, answers = child.stdin, child.stdout

        def ask(overrides: list[str]) -> Run:
            requests.write(json.dumps(overrides) + "\n")
            requests.flush()
            if not (line := answers.readline()):
                raise SystemExit(f"sq: the process that runs {code} ended; see above")
            return json.loads(line)

        try:
            yield ask
        except BaseException:
            child.kill()
            raise


def serve() -> int:
    """Make the runs that standard input asks for, a line each; leave their figures on standard output.

    Only what every version of sq has is used, so that one file measures several.
    """
    answers, sys.stdout = sys.stdout, sys.stderr
    torch_setup = _module("sq.runtime.torch_setup")
    torch_setup.import_torch()
    import hydra

    from sq import api, pipeline

    provenance = _module("sq.core.provenance")
    expand = _module("sq.runs.sweep.expand")
    phase_timer = _module("sq.runtime.phase_timer")

    cpu: dict[str, float] = {}
    plain = phase_timer.Clock.phase

    @contextmanager
    def phase(self: Any, name: str) -> Iterator[None]:
        start = time.process_time()
        with plain(self, name):
            yield
        cpu[name] = cpu.get(name, 0.0) + time.process_time() - start

    phase_timer.Clock.phase = phase
    for line in sys.stdin:
        fixed = ["bits=3", "cache=null", "tracker=none", "correction=batchnorm"]
        with api._own_hydra():
            config = expand.resolve(
                hydra.compose("config", [*json.loads(line), *fixed], return_hydra_config=True)
            )
        cpu.clear()
        device = torch_setup.prepare(config)
        made = pipeline.run(config, device)
        figures = made["results"]
        told: Run = {
            "solve_seconds": figures["solve_seconds"],
            "solve_cpu_seconds": figures.get("solve_cpu_seconds"),
        }
        told |= {
            "quantize_seconds": made["seconds"]["quantize"],
            "quantize_cpu_seconds": cpu["quantize"],
        }
        told |= {"run_seconds": sum(made["seconds"].values()), "run_cpu_seconds": sum(cpu.values())}
        told |= {"codes": figures["codes"], "relative_error": figures["relative_error"]}
        told |= {
            "seconds": made["seconds"],
            "cpu_seconds": dict(cpu),
            "provenance": provenance.collect(device),
        }
        answers.write(json.dumps(told) + "\n")
        answers.flush()
    return 0


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
        """Return that of figure `what`; "seconds.load" is one of phase "load"."""
        wanted = {"beside": beside, "quantizer": name, "code": code, "threads": threads}
        figure, _, phase = what.partition(".")
        own = [run[figure] for run in self.runs if all(run[k] == v for k, v in wanted.items())]
        return statistics.median(value[phase] if phase else value for value in own)


def report(made: dict[str, Any]) -> tuple[str, bool]:
    """Return the report of a record as Markdown, and whether all that has to hold does."""
    runs, where = made["runs"], made["provenance"]
    of = _Medians(runs)
    held = _held(runs, of)
    lines = [
        "# Times beside other work",
        "",
        f"Embedded network, 3 bits, {where['processor']}, {where['threads']} threads, medians of {made['repeats']}. "
        f"Load before a run: {_range(runs, ALONE)} alone, {_range(runs, BUSY)} beside one loop a core.",
        "Solve: summed over layers; phase: layers side by side, grids included; x: as a multiple of the same alone.",
        "Speed-up over OBQ: by CPU seconds of the solve, and by seconds of the phase.",
        "",
        *_solvers(of),
        "",
        *(f"- {'holds' if holds else 'FAILS'}: {what}" for what, holds in held.items()),
        "",
        "## Phases, with threads as they are by default and with one",
        "",
        *_phases(of, [*runs[0]["seconds"]]),
    ]
    if any(run["code"] == "before" for run in runs):
        lines += ["", "## This code and the one before it, in turns", "", *_before(of)]
    return "\n".join(lines) + "\n", all(held.values())


def _solvers(of: _Medians) -> Iterator[str]:
    yield "| method | beside | solve CPU s | x | solve s | phase s | x | speed-up, CPU | speed-up, phase |"
    yield "|:--|:--|--:|--:|--:|--:|--:|--:|--:|"
    for name, beside in itertools.product(SOLVERS, (ALONE, BUSY)):
        cpu, wall, phase = (of(what, beside, name) for what in (CPU, "solve_seconds", PHASE))
        more = cpu / of(CPU, ALONE, name), phase / of(PHASE, ALONE, name)
        fast = of(CPU, beside, "obq") / cpu, of(PHASE, beside, "obq") / phase
        cells = f"{cpu:.3f} | {more[0]:.2f} | {wall:.3f} | {phase:.3f} | {more[1]:.2f} | {fast[0]:.1f} | {fast[1]:.1f}"
        yield f"| {name} | {beside} | {cells} |"


def _held(runs: list[Run], of: _Medians) -> dict[str, bool]:
    """Return what has to hold, in words, and whether it does."""
    faster = of(CPU, BUSY, "obq") / of(CPU, BUSY, "sensiquant")
    more, longer = (
        max(of(what, BUSY, n) / of(what, ALONE, n) for n in SOLVERS) for what in (CPU, PHASE)
    )
    codes = {(run["quantizer"], run["codes"]) for run in runs if run["code"] == "this"}
    return {
        f"beside loops sensiquant takes 1/{SPEEDUP:g} of obq's CPU seconds or less: 1/{faster:.1f}": faster
        >= SPEEDUP,
        f"CPU seconds beside loops are {CPU_TIMES:g} times those alone or less: {more:.2f}": more
        <= CPU_TIMES,
        f"seconds of the phase beside loops are {WALL_TIMES:g} times those alone or less: {longer:.2f}": longer
        <= WALL_TIMES,
        "codes are the same in all runs, whatever the threads and the load": len(codes)
        == len(SOLVERS),
    }


def _phases(of: _Medians, phases: list[str]) -> Iterator[str]:
    yield "| method | beside | phase | default s | one thread s | default CPU s | one thread CPU s |"
    yield "|:--|:--|:--|--:|--:|--:|--:|"
    for name, beside, phase in itertools.product(ONE_THREAD, (ALONE, BUSY), phases):
        times = [
            of(f"{what}.{phase}", beside, name, threads=t)
            for what in SECONDS
            for t in ("default", 1)
        ]
        if max(times[:2]) >= LEAST:
            yield f"| {name} | {beside} | {phase} | {' | '.join(f'{t:.3f}' for t in times)} |"


def _before(of: _Medians) -> Iterator[str]:
    yield "| method | beside | phase s, before | phase s | phase CPU s, before | phase CPU s | run s, before | run s |"
    yield "|:--|:--|--:|--:|--:|--:|--:|--:|"
    figures = (PHASE, "quantize_cpu_seconds", "run_seconds")
    for name, beside in itertools.product(SOLVERS, (ALONE, BUSY)):
        times = [
            of(what, beside, name, code=code) for what in figures for code in ("before", "this")
        ]
        yield f"| {name} | {beside} | {' | '.join(f'{t:.3f}' for t in times)} |"


def _range(runs: list[Run], beside: str) -> str:
    loads = [run["load"] for run in runs if run["beside"] == beside]
    return f"{min(loads):.1f} to {max(loads):.1f}"


if __name__ == "__main__":
    sys.exit(main())
