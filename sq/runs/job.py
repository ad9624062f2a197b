"""One job: look for the run's record, else run, and leave a record whatever happens."""

from __future__ import annotations

import json
import logging
import os
import socket
import sys
import time
import traceback
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sq.config.instantiate import build
from sq.config.schema import check
from sq.core import files
from sq.core.progress import say
from sq.errors import SqError, one_line
from sq.records import record, run_locks
from sq.runs import incompatible_settings
from sq.runtime import torch_setup
from sq.tracker import run_page

if TYPE_CHECKING:
    from sq.runs.sweep.expand import Job

# what the user asked for, before sq.cli sets it
TRACEBACKS = os.environ.get("HYDRA_FULL_ERROR", "0") not in ("", "0")
POLL = 2.0  # seconds between two looks at a run that another process is doing
log = logging.getLogger("sq")


def attempt(one: Job, *, wait: bool) -> tuple[record.Record | None, str]:
    """Return the record of job `one`, None if there is none, and why it failed ("" if it did not); see `execute`."""
    made: record.Record | None = None
    try:
        made = execute(one, wait=wait)
        failure, trace = (made or {}).get("error", ""), (made or {}).get("traceback", "")
    except SqError as error:
        failure, trace = str(error), traceback.format_exc()
    if trace and TRACEBACKS:
        say(trace)
    return made, failure


def execute(one: Job, *, wait: bool) -> record.Record | None:
    """Return the record of job `one`: the one on disk if that run is done, else that of a new run.

    A run that fails leaves a record too, with status "failed", its error and traceback, and the
    next call tries again. An interrupt leaves nothing. A run that another process is doing is
    waited for, or left to it: the result is None then, unless `wait`. An attempt since the job was
    `seen`, by whomever, is the one wanted: its record is returned.

    Raises
    ------
    SqError : no run was possible: settings that make no sense, a damaged record, a folder that
    cannot be written
    """
    config, file = one.config, one.file
    check(config)
    found = record.read(file)
    if found and found["status"] == "done" and not config["rerun"]:
        return found
    if wrong := incompatible_settings.find(config, one.choices):
        raise SqError("; ".join(wrong))
    record.probe(file.parent)
    seen = record.fingerprint(file) if one.seen is None else one.seen
    held = _claimed(file) if wait else run_locks.acquire(file)
    if held is None:
        return None
    try:
        # which also makes an NFS client look again for files it did not find before
        record.probe(file.parent)
        found = record.read(file)
        if found is not None and record.fingerprint(file) != seen:
            return found
        done = found if found is not None and found["status"] == "done" else None
        # Trackers are left last: they can take a minute, and whatever happens meanwhile must not
        # cost the result.
        with _LogTo(_log(config, file)), ExitStack() as trackers:
            made = _run(config, one.choices, file.stem, done, trackers)
            if held.lost():
                raise SqError(
                    f"another launcher took this process for dead and is doing {file.stem} again"
                )
            # A failed attempt at `rerun` must not cost the figures that are there: it is kept
            # beside them.
            record.save(file, made, keep_done=done is not None)
        return made
    finally:
        held.release()


def _claimed(file: Path) -> run_locks.RunLock:
    """Return the claim to a run, as soon as nobody else holds it."""
    told = False
    while (held := run_locks.acquire(file)) is None:
        if not told and (who := run_locks.holder(file)):
            say(f"    waiting for the process that runs it {run_locks.describe(who)}")
            told = True
        time.sleep(POLL)
    return held


def bury(one: Job, cause: str, trace: str) -> bool:
    """Record that the process of job `one` ended for `cause`, unless it, or another since, left a record of the run.

    The run's own log and its tracker, where all looks as if it were still on, are told too.

    Returns
    -------
    whether that is settled: not while a process holds the run, be it another launcher's or the one
    that is dying

    Raises
    ------
    SqError : the folder cannot be written
    """
    config, file, seen = one.config, one.file, one.seen or ""
    if record.fingerprint(file) != seen:
        return True
    held = run_locks.acquire(file)
    if held is None:
        return False
    try:
        if record.fingerprint(file) == seen:
            made = {**_begun(config, one.choices, file.stem), "error": cause, "traceback": trace}
            found = record.read(file)
            done = found if found is not None and found["status"] == "done" else None
            with _LogTo(_log(config, file)):
                log.error("failed: %s; the last it said:\n%s", cause, trace)
                record.save(file, made, keep_done=done is not None)
                _leave(config["tracker"], made, done)
        return True
    finally:
        held.release()


def _leave(part: Mapping[str, Any], made: record.Record, earlier: record.Record | None) -> None:
    """Leave the page of a run whose process could not; the record stands, whatever goes wrong here."""
    try:
        build(part, "tracker")(made).close(run_page.kept(made, earlier))
    except Exception as error:
        log.warning("no page in the tracker: %s", one_line(error))


def outcome(made: record.Record) -> str:
    """Return one line on what came of a run that is done."""
    figures, seconds = made["results"], sum(made["seconds"].values())
    return f"relative error {figures['relative_error']:.5f}, drop {figures['drop']:.3g}, {seconds:.1f} s"


def _run(
    config: Mapping[str, Any],
    choices: Mapping[str, str],
    key: str,
    earlier: record.Record | None,
    trackers: ExitStack,
) -> record.Record:
    """Return the record of a run; `trackers` sends it when it closes, or the `earlier` one where that is kept."""
    made = _begun(config, choices, key)
    log.info("begun on %s, process %s", socket.gethostname(), os.getpid())
    tracker = None
    try:
        torch_setup.import_torch()
        device = torch_setup.prepare(config)
        from sq import pipeline
        from sq.core import provenance
        from sq.runtime import out_of_memory

        made["provenance"] = provenance.collect(device, config)
        tracker = build(config["tracker"], "tracker")(made)
        with out_of_memory.explained():
            figures = pipeline.run(config, device)
        _keep_sheet(config, key, figures.pop("sheet", None))
        json.dumps(figures, allow_nan=False)  # what cannot be written is a failure too
        record.save_ids(config, figures["calibration"]["ids"], figures.pop("calibration_ids"))
        made |= figures
        made["status"] = "done"
    except Exception as error:  # whatever it is, it belongs in the record
        log.exception("failed")
        made["error"] = one_line(error)
        made["traceback"] = traceback.format_exc()
    if tracker is not None:
        trackers.callback(tracker.close, run_page.kept(made, earlier))
    log.info("ended: %s", made["status"])
    return made


def _log(config: Mapping[str, Any], file: Path) -> Path:
    """Return where the run of record `file` logs."""
    return Path(config["outputs"]) / config["name"] / f"{file.stem}.log"


def _keep_sheet(config: Mapping[str, Any], key: str, picture: bytes | None) -> None:
    """Leave the `picture` of images that were made beside the log; go on without if that cannot be."""
    if picture is None:
        return
    try:
        files.write_bytes(record.contact_sheet(config, key), picture, "outputs")
    except SqError as error:
        log.warning("no picture of the calibration images: %s", error)


def _begun(config: Mapping[str, Any], choices: Mapping[str, str], key: str) -> record.Record:
    """Return the record of a run that has not come to its end."""
    made: record.Record = {
        "record": record.VERSION,
        "key": key,
        "name": config["name"],
        "status": "failed",
    }
    return made | {"choices": dict(choices), "config": dict(config)}


def _no_log(file: Path | str, error: BaseException | None) -> str:
    """Return what to say of a log that cannot be written."""
    reason = getattr(error, "strerror", None) or (one_line(error) if error else "unknown")
    return f"log: cannot be kept in {file} ({reason}): free space or correct outputs=; the run goes on without"


class _LogFile(logging.FileHandler):
    """A log that may fail: that is said once, and no line of it is tried again."""

    failed = False

    def emit(self, line: logging.LogRecord) -> None:
        """Write one line."""
        if not self.failed:
            super().emit(line)

    def handleError(self, record: logging.LogRecord) -> None:
        """Say what keeps the log from being written; by default, each line would leave a traceback."""
        if not self.failed:
            self.failed = True
            say(_no_log(self.baseFilename, sys.exc_info()[1]))

    def close(self) -> None:
        """Close the file, whose last lines may not find room either."""
        with suppress(OSError):
            super().close()


class _LogTo:
    """Send what `sq` logs to `file` for a while; go on without if that cannot be."""

    def __init__(self, file: Path):
        self.file = file

    def __enter__(self) -> None:
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            self.handler: logging.Handler = _LogFile(self.file, mode="a")
        except OSError as error:
            say(_no_log(self.file, error))
            self.handler = logging.NullHandler()
        self.handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        log.addHandler(self.handler)
        log.setLevel(logging.INFO)
        self.propagated, log.propagate = log.propagate, False

    def __exit__(self, *_: object) -> None:
        log.removeHandler(self.handler)
        log.propagate = self.propagated
        self.handler.close()
