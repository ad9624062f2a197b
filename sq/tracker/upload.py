"""Upload an experiment's records to Weights & Biases: ``python -m sq track NAME``.

Every record becomes one W&B run, failed ones with their cause, and the experiment one more: its
table, figures and failures. A run's id follows from experiment and key (`sq.tracker.run_page`), so
that nothing is ever there twice: what a tracker sent while the run was on, ``wandb sync`` of
offline files, and this command all write the same W&B run. What this command has sent is noted
(`sq.tracker.upload_log`) with a digest of the record, and sent again only when the record has
changed. What a tracker sent is not noted, for only W&B knows whether it arrived: it is sent once
more, to no harm.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sq.core import closed_pipe, durations
from sq.core.progress import say, track
from sq.errors import SqError, one_line
from sq.records import record
from sq.records.record import Record
from sq.tracker import experiment_pages
from sq.tracker.experiment_pages import Item
from sq.tracker.run_page import Destination, Page
from sq.tracker.upload_log import Ledger


def parser(prog: str) -> argparse.ArgumentParser:
    """Return the parser of its command line."""
    parser = argparse.ArgumentParser(
        prog=prog, description="Upload an experiment's records to Weights & Biases."
    )
    parser.add_argument("name", help="the experiment, a folder of results/")
    parser.add_argument(
        "--results", type=Path, default=Path("results"), help="where records are (default: results)"
    )
    parser.add_argument(
        "--outputs", type=Path, default=Path("outputs"), help="for W&B's files (default: outputs)"
    )
    parser.add_argument(
        "--mode", choices=("online", "offline"), default="online", help="offline: for `wandb sync`"
    )
    parser.add_argument(
        "--project", help="default: that of the runs, else the one in conf/tracker/wandb.yaml"
    )
    parser.add_argument("--entity", help="default: that of the runs, else your own")
    parser.add_argument(
        "--timeout",
        type=int,
        metavar="SECONDS",
        help="for W&B's answers (default: as for --project)",
    )
    parser.add_argument(
        "--force", action="store_true", help="upload again what was uploaded as it is"
    )
    return parser


@closed_pipe.quiet
def main(words: list[str] | None = None, prog: str = "python -m sq track") -> int:
    """Parse the command line, upload; return 0 if everything is there then, else 1."""
    options = parser(prog).parse_args(words)
    try:
        return 0 if upload(options) else 1
    except SqError as error:
        say(f"sq: {error}")
        return 1
    except KeyboardInterrupt:
        say("sq: interrupted; the same command goes on where this one stopped")
        return 130


def upload(options: argparse.Namespace) -> bool:
    """Upload what is not there as it stands; return whether everything is there then.

    Raises
    ------
    SqError : there are no records, or none can be uploaded
    """
    from sq.tracker import wandb as adapter

    name = options.name
    found = experiment_pages.read(record.folder(name, options.results))
    if not found.records and not found.damaged:
        raise SqError(f"no records in {options.results / name}: run the experiment first")
    where = destination(options, list(found.records.values()))
    place = adapter.place(where)
    ledger = Ledger(options.outputs / "tracked" / f"{name}.json", place)
    items = found.items()
    todo = [item for item in items if options.force or not ledger.has(item.id, item.digest)]
    failed = list(found.damaged.values())
    if todo:
        adapter.check(where)
        time_told = (
            f", about {durations.words(len(todo) * ledger.seconds)} by the last time"
            if ledger.seconds
            else ""
        )
        say(
            f"{name}: {len(todo)} of {len(items)} to upload to {place} (records, and a summary){time_told}"
        )
        failed += _send(todo, where, ledger)
    for line in failed:
        say(f"not uploaded: {line}")
    sent = len(todo) - (len(failed) - len(found.damaged))
    say(
        f"{name}: {sent} uploaded, {len(items) - len(todo)} were there as they are, {len(failed)} not uploaded"
    )
    return not failed


def destination(options: argparse.Namespace, records: Sequence[Record]) -> Destination:
    """Return where to upload: what the options say, else what the runs were to be tracked in, else what the YAML says.

    Raises
    ------
    SqError : the runs name several projects or entities, the options none; or no time to wait
    """
    from sq.config import resolvers

    defaults = resolvers.read("tracker/wandb", outputs=str(options.outputs))

    def agreed(knob: str) -> Any:
        if (given := getattr(options, knob)) is not None:
            return given
        named = {own.get("config", {}).get("tracker", {}).get(knob) for own in records} - {None}
        if len(named) > 1:
            raise SqError(
                f"the runs name {len(named)} W&B {knob}s, {', '.join(sorted(named))}: choose with --{knob}"
            )
        return named.pop() if named else defaults[knob]

    wait = defaults["timeout"] if options.timeout is None else options.timeout
    if wait < 1:
        raise SqError(f"--timeout {wait}: seconds, 1 or more")
    return Destination(
        options.mode, agreed("project"), agreed("entity"), str(options.outputs), wait
    )


def _send(todo: Sequence[Item], where: Destination, ledger: Ledger) -> list[str]:
    """Send every item and note it; return a line for each that was not sent."""
    from sq.tracker import wandb as adapter

    failed: list[str] = []
    sent, start = 0, time.monotonic()
    try:
        for number, item in enumerate(track(todo, "uploading", len(todo))):
            try:
                adapter.upload(item.draw(), where)
            except Exception as error:  # a record without what a page needs, too
                failed.append(f"{item.id}: {one_line(error)}")
                if lost := _lost(where):
                    failed += [f"{other.id}: not tried, {lost}" for other in todo[number + 1 :]]
                    break
            else:
                sent += 1
                ledger.note(item.id, item.digest)
    finally:
        if sent:
            ledger.seconds = (time.monotonic() - start) / sent
        ledger.write()
    return failed


def _lost(where: Destination) -> str:
    """Return why nothing more can be uploaded, "" if it can: what failed was one record's own matter."""
    from sq.tracker import wandb as adapter

    try:
        adapter.check(where)
    except SqError as error:
        return str(error)
    return ""


def summarise(
    records: Mapping[Path, Record], failures: Mapping[Path, str], config: Mapping[str, Any]
) -> None:
    """Leave the page of a whole experiment where its runs were tracked; whatever goes wrong, the sweep does not fail.

    Parameters
    ----------
    records : of the sweep that ends, by file; its folder may hold more, of other sweeps and
    launchers, which are shown
        too
    failures : by file, a line for each run of the sweep that left no good record or could not be
    repeated
    config : of one of its runs
    """
    from sq.config.instantiate import build

    folder = Path(config["results"]) / config["name"]

    def own(found: Mapping[Path, Any]) -> dict[str, Any]:
        return {file.stem: value for file, value in found.items() if file.parent == folder}

    def draw() -> Page:
        return experiment_pages.read(folder, own(records)).summary(own(failures))

    try:
        part = config["tracker"]
        beside = f"{part['_target_'].rpartition('.')[0]}.summarise"
        build({**part, "_target_": beside}, "tracker")(draw)
    except Exception as error:
        say(f"no summary in the tracker: {one_line(error)}")


if __name__ == "__main__":
    sys.exit(main())
