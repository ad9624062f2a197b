"""Solvers side by side on the same layers: ``python -m sq.bench NAME [overrides]``."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from sq.bench import report, settings
from sq.core import closed_pipe
from sq.core.progress import out, say
from sq.core.wording import quantity
from sq.errors import SqError
from sq.records import record
from sq.records.experiments import FOLDER
from sq.runtime import torch_setup


def parser(prog: str) -> argparse.ArgumentParser:
    """Return the parser of its command line."""
    parser = argparse.ArgumentParser(
        prog=prog, description="Solvers side by side on the same layers."
    )
    parser.add_argument(
        "name", help=f"one of experiments/bench_*.yaml: {', '.join(settings.known())}"
    )
    parser.add_argument("overrides", nargs="*", help="settings of that file: repeats=1 bits=[4]")
    parser.add_argument(
        "--report", action="store_true", help="only rebuild tables and figures, from the record"
    )
    parser.add_argument(
        "--experiments",
        type=Path,
        default=FOLDER,
        help="the folder of bench_*.yaml (default: sq's own)",
    )
    return parser


@closed_pipe.quiet
def main(arguments: list[str] | None = None, prog: str = "python -m sq.bench") -> int:
    """Parse the command line, measure, build the report, return the exit code."""
    options = parser(prog).parse_intermixed_args(arguments)
    try:
        benchmark = settings.load(options.name, options.overrides, options.experiments.resolve())
        if not options.report:
            measure(benchmark)
        files = report.build(benchmark.file)
    except SqError as error:
        say(f"sq: {error}")
        return 1
    except KeyboardInterrupt:
        say("sq: interrupted; nothing was recorded")
        return 130
    out.print((benchmark.file.parent / "table.md").read_text(), soft_wrap=True)
    for file in files:
        say(str(file))
    return 0


def measure(benchmark: settings.Settings) -> record.Record:
    """Run a benchmark and write its record.

    Raises
    ------
    SqError : settings that make no sense, or a folder that cannot be written
    """
    torch_setup.import_torch()
    methods = settings.methods(benchmark)
    grid = settings.choose("grid", benchmark.grid, benchmark.seed)
    record.probe(benchmark.file.parent)  # refuses a folder that cannot be written
    device = torch_setup.prepare(settings.plain(benchmark))

    from sq.bench import measure as bench
    from sq.config.instantiate import build
    from sq.core import provenance

    # Plugins that these functions are from are part of the provenance.
    functions = {"grid": grid, "solvers": [method.solve for method in methods]}
    where = provenance.collect(device, functions)
    source = build(benchmark.source, "source")
    start = time.perf_counter()
    cases = source(benchmark.seed, device)
    counts = [
        quantity(cases, "layer"),
        quantity(methods, "quantizer"),
        quantity(benchmark.bits, "bit-width"),
        quantity(benchmark.repeats, "repeat"),
    ]
    solves = len(cases) * len(methods) * len(benchmark.bits) * benchmark.repeats
    say(f"{' x '.join(counts)} = {quantity(solves, 'solve')}{_forecast(benchmark)}")
    fit = build(grid, "grid")
    measurements = list(bench.run(cases, methods, fit, benchmark.bits, benchmark.repeats, device))
    result: record.Record = {
        "record": record.VERSION,
        "key": record.key(settings.plain(benchmark)),
        "name": benchmark.name,
        "status": "done",
        "config": settings.plain(benchmark),
        "provenance": where,
        "seconds": {"bench": time.perf_counter() - start},
        "measurements": measurements,
    }
    record.write(benchmark.file, result)
    return result


def _forecast(benchmark: settings.Settings) -> str:
    """Return how long the benchmark took by its earlier record, in words."""
    earlier = None
    if benchmark.file.is_file():
        earlier = record.read(benchmark.file)
    if earlier is None:
        return "; no earlier record to estimate their time from"
    is_same = earlier["key"] == record.key(settings.plain(benchmark))
    same = "the same settings" if is_same else "other settings"
    seconds = sum(earlier["seconds"].values())
    return f"; {seconds:.0f} s by the earlier record, which this replaces ({same})"


if __name__ == "__main__":
    sys.exit(main())
