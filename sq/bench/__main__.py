"""Solvers side by side on the same layers: ``python -m sq.bench NAME [overrides]``."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

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
        "--report", action="store_true", help="rebuild tables and figures from the record, no more"
    )
    parser.add_argument(
        "--experiments",
        type=Path,
        default=FOLDER,
        help="the folder of bench_*.yaml (default: sq's own)",
    )
    return parser


@closed_pipe.quiet
def main(words: list[str] | None = None, prog: str = "python -m sq.bench") -> int:
    """Parse the command line, measure unless only a report is wanted, build it, return the exit code."""
    options = parser(prog).parse_intermixed_args(words)
    try:
        own = settings.load(options.name, options.overrides, options.experiments.resolve())
        if not options.report:
            measure(own)
        files = report.build(own.file)
    except SqError as error:
        say(f"sq: {error}")
        return 1
    except KeyboardInterrupt:
        say("sq: interrupted; nothing was recorded")
        return 130
    out.print((own.file.parent / "table.md").read_text(), soft_wrap=True)
    for file in files:
        say(str(file))
    return 0


def measure(own: settings.Settings) -> record.Record:
    """Run the benchmark `own` and write its record.

    Raises
    ------
    SqError : settings that make no sense, or a folder that cannot be written
    """
    torch_setup.import_torch()
    methods = settings.methods(own)
    grid = settings.choose("grid", own.grid, own.seed)
    record.probe(own.file.parent)
    device = torch_setup.prepare(settings.plain(own))

    from sq.bench import measure as bench
    from sq.config.instantiate import build
    from sq.core import provenance

    where = provenance.collect(
        device, {"grid": grid, "solvers": [method.solve for method in methods]}
    )
    source = build(own.source, "source")
    start = time.perf_counter()
    cases = source(own.seed, device)
    solves = " x ".join(
        [
            quantity(cases, "layer"),
            quantity(methods, "quantizer"),
            quantity(own.bits, "bit-width"),
            quantity(own.repeats, "repeat"),
        ]
    )
    number = len(cases) * len(methods) * len(own.bits) * own.repeats
    say(f"{solves} = {quantity(number, 'solve')}{_forecast(own)}")
    found = list(bench.run(cases, methods, build(grid, "grid"), own.bits, own.repeats, device))
    made: record.Record = {
        "record": record.VERSION,
        "key": record.key(settings.plain(own)),
        "name": own.name,
        "status": "done",
        "config": settings.plain(own),
        "provenance": where,
        "seconds": {"bench": time.perf_counter() - start},
        "measurements": found,
    }
    record.write(own.file, made)
    return made


def _forecast(own: settings.Settings) -> str:
    """Return what an earlier record of the same benchmark says about its cost."""
    earlier: dict[str, Any] | None = record.read(Path(own.file)) if own.file.is_file() else None
    if earlier is None:
        return "; no earlier record to estimate their time from"
    same = (
        "the same settings"
        if earlier["key"] == record.key(settings.plain(own))
        else "other settings"
    )
    return f"; {sum(earlier['seconds'].values()):.0f} s by the earlier record, which this replaces ({same})"


if __name__ == "__main__":
    sys.exit(main())
