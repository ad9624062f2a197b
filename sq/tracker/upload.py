"""Upload an experiment's records to Weights & Biases: ``python -m sq track NAME``.

Every record becomes one W&B run, failed ones with their cause, and the experiment one more: its
table, figures and failures. The id of a W&B run is derived from experiment and key
(`sq.tracker.run_page`), so nothing is ever there twice: the tracker during a run, ``wandb sync`` of
offline files, and this command all write the same W&B run.

An upload log, outputs/tracked/NAME.json, holds a digest of each record that this command has sent.
A record is sent again only when it has changed. Pages that a tracker sent are not logged, because
only W&B knows whether they arrived; sending them again does no harm.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sq.core import closed_pipe, durations, files
from sq.core.progress import say, track
from sq.errors import SqError, one_line
from sq.records import record
from sq.records.record import Record
from sq.tracker import experiment_pages
from sq.tracker.experiment_pages import Item
from sq.tracker.run_page import Destination, Page

VERSION = 1  # of the format of upload logs
WRITE_INTERVAL = 5.0  # seconds between two writes of a log while pages are sent


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
def main(arguments: list[str] | None = None, prog: str = "python -m sq track") -> int:
    """Parse the command line and upload; return 0 if everything is uploaded, else 1."""
    options = parser(prog).parse_args(arguments)
    try:
        return 0 if upload(options) else 1
    except SqError as error:
        say(f"sq: {error}")
        return 1
    except KeyboardInterrupt:
        say("sq: interrupted; the same command goes on where this one stopped")
        return 130


def upload(options: argparse.Namespace) -> bool:
    """Upload the pages that have changed; return whether everything is uploaded.

    Raises
    ------
    SqError : there are no records, or none can be uploaded
    """
    from sq.tracker import wandb as adapter

    name = options.name
    experiment = experiment_pages.read(record.folder(name, options.results))
    if not experiment.records and not experiment.damaged:
        raise SqError(f"no records in {options.results / name}: run the experiment first")
    where = destination(options, list(experiment.records.values()))
    place = adapter.place(where)
    upload_log = UploadLog(options.outputs / "tracked" / f"{name}.json", place)
    items = experiment.items()
    todo = [item for item in items if options.force or not upload_log.has(item.id, item.digest)]
    failures = list(experiment.damaged.values())
    if todo:
        adapter.check(where)
        estimate = ""
        if upload_log.seconds:
            duration = durations.words(len(todo) * upload_log.seconds)
            estimate = f", about {duration} by the last time"
        say(
            f"{name}: {len(todo)} of {len(items)} to upload to {place} "
            f"(records, and a summary){estimate}"
        )
        failures += _send(todo, where, upload_log)
    for line in failures:
        say(f"not uploaded: {line}")
    sent = len(todo) - (len(failures) - len(experiment.damaged))
    say(
        f"{name}: {sent} uploaded, {len(items) - len(todo)} were there as they are, "
        f"{len(failures)} not uploaded"
    )
    return not failures


def destination(options: argparse.Namespace, records: Sequence[Record]) -> Destination:
    """Return where to upload: by the options, else by the settings of the runs, else by the YAML.

    Raises
    ------
    SqError : the runs name several projects or entities, the options none; or no time to wait
    """
    from sq.config import resolvers

    defaults = resolvers.read("tracker/wandb", outputs=str(options.outputs))

    def agreed(knob: str) -> Any:
        option = getattr(options, knob)
        if option is not None:
            return option
        trackers = [record.get("config", {}).get("tracker", {}) for record in records]
        names = {tracker.get(knob) for tracker in trackers} - {None}
        if len(names) > 1:
            raise SqError(
                f"the runs name {len(names)} W&B {knob}s, {', '.join(sorted(names))}: "
                f"choose with --{knob}"
            )
        return names.pop() if names else defaults[knob]

    timeout = defaults["timeout"] if options.timeout is None else options.timeout
    if timeout < 1:
        raise SqError(f"--timeout {timeout}: seconds, 1 or more")
    return Destination(
        options.mode, agreed("project"), agreed("entity"), str(options.outputs), timeout
    )


def _send(todo: Sequence[Item], where: Destination, upload_log: UploadLog) -> list[str]:
    """Send and log every item; return a line for each that was not sent."""
    from sq.tracker import wandb as adapter

    failures: list[str] = []
    sent, start = 0, time.monotonic()
    try:
        for number, item in enumerate(track(todo, "uploading", len(todo))):
            try:
                adapter.upload(item.draw(), where)
            except Exception as error:  # also of a record that lacks what a page needs
                failures.append(f"{item.id}: {one_line(error)}")
                reason = _lost(where)
                if reason:
                    rest = todo[number + 1 :]
                    failures += [f"{other.id}: not tried, {reason}" for other in rest]
                    break
            else:
                sent += 1
                upload_log.add(item.id, item.digest)
    finally:
        if sent:
            upload_log.seconds = (time.monotonic() - start) / sent
        upload_log.write()
    return failures


def _lost(where: Destination) -> str:
    """Return why nothing more can be uploaded, "" if only the last record was at fault."""
    from sq.tracker import wandb as adapter

    try:
        adapter.check(where)
    except SqError as error:
        return str(error)
    return ""


def summarise(
    records: Mapping[Path, Record], failures: Mapping[Path, str], config: Mapping[str, Any]
) -> None:
    """Send the page of a whole experiment to the tracker of its runs; never fail the sweep.

    Parameters
    ----------
    records : of the sweep that ends, by file. The folder may hold more, of other sweeps and
        launchers, which the page shows too
    failures : by file, a line for each run of the sweep that has no good record or could not be
        repeated
    config : of one of its runs
    """
    from sq.config.instantiate import build

    folder = Path(config["results"]) / config["name"]

    def in_folder(by_file: Mapping[Path, Any]) -> dict[str, Any]:
        return {file.stem: value for file, value in by_file.items() if file.parent == folder}

    def draw() -> Page:
        return experiment_pages.read(folder, in_folder(records)).summary(in_folder(failures))

    try:
        tracker = config["tracker"]
        module = tracker["_target_"].rpartition(".")[0]
        build({**tracker, "_target_": f"{module}.summarise"}, "tracker")(draw)
    except Exception as error:
        say(f"no summary in the tracker: {one_line(error)}")


class UploadLog:
    """The log of what was uploaded of one experiment to one destination.

    The log only saves work: without an entry, a page is sent again to its id. So it has no lock,
    and one of two processes that write at once may lose the last entries of the other.

    Parameters
    ----------
    file : read now, written by `write`; entries of other destinations in it are preserved
    place : the destination as text: mode, server or folder, entity, project

    Raises
    ------
    SqError : the file is damaged
    """

    def __init__(self, file: Path, place: str):
        self.file, self.place = file, place
        self.places = _read(file)
        entries = self.places.setdefault(place, {"sent": {}, "seconds": None})
        self.sent: dict[str, str] = entries["sent"]  # digests by id of a page
        self.written = time.monotonic()

    @property
    def seconds(self) -> float | None:
        """Return how long a page took the last time, None if there was none."""
        return self.places[self.place]["seconds"]

    @seconds.setter
    def seconds(self, value: float) -> None:
        self.places[self.place]["seconds"] = value

    def has(self, page: str, digest: str) -> bool:
        """Tell whether the page with that id was sent from sources with that digest."""
        return self.sent.get(page) == digest

    def add(self, page: str, digest: str) -> None:
        """Log that the page was sent."""
        self.sent[page] = digest
        if time.monotonic() - self.written > WRITE_INTERVAL:
            self.write()

    def write(self) -> None:
        """Write the file, whole or not at all."""
        text = json.dumps({"ledger": VERSION, "places": self.places}, indent=1, sort_keys=True)
        files.write_text(self.file, text + "\n", "outputs")
        self.written = time.monotonic()


def _read(file: Path) -> dict[str, dict[str, Any]]:
    """Return the entries of an upload log by destination."""
    try:
        content = json.loads(file.read_text())
        if content["ledger"] != VERSION:
            raise ValueError(f"version {content['ledger']}")
        for entries in content["places"].values():
            is_valid = isinstance(entries["sent"], dict)
            is_valid = is_valid and isinstance(entries["seconds"], int | float | None)
            if not is_valid:
                raise TypeError("entries of another form")
        return content["places"]
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise SqError(
            f"cannot read {file}: {error.strerror}; correct --outputs or its rights"
        ) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise SqError(
            f"{file} is not a whole list of what was uploaded ({error}): delete it, and everything "
            "is uploaded again, in place of what is there"
        ) from error


if __name__ == "__main__":
    sys.exit(main())
