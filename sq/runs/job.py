"""Run one job: return its record if it is done, else run it and write a record in any case."""

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

# the setting of the user: sq.cli sets the variable later
TRACEBACKS = os.environ.get("HYDRA_FULL_ERROR", "0") not in ("", "0")
POLL = 2.0  # seconds between two checks of a run that another process is doing
log = logging.getLogger("sq")


def attempt(one: Job, *, wait: bool) -> tuple[record.Record | None, str]:
    """Return the record of job `one`, or None, and why it failed, or ""; see `execute`."""
    result: record.Record | None = None
    try:
        result = execute(one, wait=wait)
        failure, trace = "", ""
        if result:
            failure, trace = result.get("error", ""), result.get("traceback", "")
    except SqError as error:
        failure, trace = str(error), traceback.format_exc()
    if trace and TRACEBACKS:
        say(trace)
    return result, failure


def execute(one: Job, *, wait: bool) -> record.Record | None:
    """Return the record of job `one`: the one on disk if that run is done, else that of a new run.

    A run that fails writes a record too, with status "failed", its error and traceback, and the
    next call tries again. An interrupt writes none. If another process is doing the run, this
    function waits for it, or returns None unless `wait`. If the job was attempted since it was
    `seen`, by any process, the record of that attempt is returned.

    Raises
    ------
    SqError : no run was possible: settings make no sense, a record is damaged, a folder cannot be
        written
    """
    config, file = one.config, one.file
    check(config)
    earlier = record.read(file)
    if earlier and earlier["status"] == "done" and not config["rerun"]:
        return earlier
    problems = incompatible_settings.find(config, one.choices)
    if problems:
        raise SqError("; ".join(problems))
    record.probe(file.parent)
    seen = record.fingerprint(file) if one.seen is None else one.seen
    lock = _wait_for_lock(file) if wait else run_locks.acquire(file)
    if lock is None:
        return None
    try:
        # This also makes an NFS client look again for files that it did not find before.
        record.probe(file.parent)
        earlier = record.read(file)
        if earlier is not None and record.fingerprint(file) != seen:
            return earlier
        done = _if_done(earlier)
        # Trackers close last: they can take a minute, and whatever happens meanwhile must not cost
        # the result.
        with _LogTo(_log(config, file)), ExitStack() as trackers:
            result = _run(config, one.choices, file.stem, done, trackers)
            if lock.lost():
                raise SqError(
                    f"another launcher took this process for dead and is doing {file.stem} again"
                )
            # A failed attempt at `rerun` must not cost the earlier results.
            record.save(file, result, keep_done=done is not None)
        return result
    finally:
        lock.release()


def _if_done(earlier: record.Record | None) -> record.Record | None:
    """Return a record if its run is done, else None."""
    if earlier is not None and earlier["status"] == "done":
        return earlier
    return None


def _wait_for_lock(file: Path) -> run_locks.RunLock:
    """Return the lock of a run, as soon as no other process holds it."""
    is_reported = False
    while True:
        lock = run_locks.acquire(file)
        if lock is not None:
            return lock
        if not is_reported:
            holder = run_locks.holder(file)
            if holder:
                say(f"    waiting for the process that runs it {run_locks.describe(holder)}")
                is_reported = True
        time.sleep(POLL)


def record_death(one: Job, cause: str, trace: str) -> bool:
    """Write a failed record for job `one`, whose process died, unless there is a newer one.

    The failure goes to the run's log and to its tracker as well, where the run would seem to be
    still on.

    Returns
    -------
    True once there is a record; False while a process still holds the run's lock, which may be the
    dying one

    Raises
    ------
    SqError : the folder cannot be written
    """
    config, file, seen = one.config, one.file, one.seen or ""
    if record.fingerprint(file) != seen:
        return True
    lock = run_locks.acquire(file)
    if lock is None:
        return False
    try:
        if record.fingerprint(file) == seen:
            failed = _new_record(config, one.choices, file.stem)
            failed |= {"error": cause, "traceback": trace}
            done = _if_done(record.read(file))
            with _LogTo(_log(config, file)):
                log.error("failed: %s; the end of its output:\n%s", cause, trace)
                record.save(file, failed, keep_done=done is not None)
                _track_failure(config["tracker"], failed, done)
        return True
    finally:
        lock.release()


def _track_failure(
    tracker: Mapping[str, Any], failed: record.Record, done: record.Record | None
) -> None:
    """Send the page of a run whose process died; a failure of the tracker is logged only."""
    try:
        build(tracker, "tracker")(failed).close(run_page.displayed(failed, done))
    except Exception as error:
        log.warning("no page in the tracker: %s", one_line(error))


def outcome(done: record.Record) -> str:
    """Return the result of a done run in one line."""
    results, seconds = done["results"], sum(done["seconds"].values())
    error, drop = results["relative_error"], results["drop"]
    return f"relative error {error:.5f}, drop {drop:.3g}, {seconds:.1f} s"


def _run(
    config: Mapping[str, Any],
    choices: Mapping[str, str],
    key: str,
    earlier: record.Record | None,
    trackers: ExitStack,
) -> record.Record:
    """Run, and return the record; closing `trackers` sends it.

    Parameters
    ----------
    earlier : the record of the done run that this one repeats: it is sent if this one fails
    """
    result = _new_record(config, choices, key)
    log.info("begun on %s, process %s", socket.gethostname(), os.getpid())
    tracker = None
    try:
        torch_setup.import_torch()
        device = torch_setup.prepare(config)
        from sq import pipeline
        from sq.core import provenance
        from sq.runtime import out_of_memory

        result["provenance"] = provenance.collect(device, config)
        tracker = build(config["tracker"], "tracker")(result)
        with out_of_memory.explained():
            figures = pipeline.run(config, device)
        _save_contact_sheet(config, key, figures.pop("sheet", None))
        json.dumps(figures, allow_nan=False)  # results that JSON cannot hold are a failure too
        record.save_ids(config, figures["calibration"]["ids"], figures.pop("calibration_ids"))
        result |= figures
        result["status"] = "done"
    except Exception as error:  # any failure belongs in the record
        log.exception("failed")
        result["error"] = one_line(error)
        result["traceback"] = traceback.format_exc()
    if tracker is not None:
        trackers.callback(tracker.close, run_page.displayed(result, earlier))
    log.info("ended: %s", result["status"])
    return result


def _log(config: Mapping[str, Any], file: Path) -> Path:
    """Return the log file of the run of record `file`."""
    return Path(config["outputs"]) / config["name"] / f"{file.stem}.log"


def _save_contact_sheet(config: Mapping[str, Any], key: str, picture: bytes | None) -> None:
    """Write the `picture` of generated images beside the log; a failure is logged only."""
    if picture is None:
        return
    try:
        files.write_bytes(record.contact_sheet(config, key), picture, "outputs")
    except SqError as error:
        log.warning("no picture of the calibration images: %s", error)


def _new_record(config: Mapping[str, Any], choices: Mapping[str, str], key: str) -> record.Record:
    """Return the record of a run that has begun: failed, until it is done."""
    return {
        "record": record.VERSION,
        "key": key,
        "name": config["name"],
        "status": "failed",
        "choices": dict(choices),
        "config": dict(config),
    }


def _no_log(file: Path | str, error: BaseException | None) -> str:
    """Return the message about a log that cannot be written."""
    reason = getattr(error, "strerror", None) or (one_line(error) if error else "unknown")
    return (
        f"log: cannot be kept in {file} ({reason}): free space or correct outputs=; "
        "the run goes on without"
    )


class _LogFile(logging.FileHandler):
    """A log file that may fail: it reports the first failure, and drops all later lines."""

    failed = False

    def emit(self, line: logging.LogRecord) -> None:
        """Write one line."""
        if not self.failed:
            super().emit(line)

    def handleError(self, record: logging.LogRecord) -> None:
        """Report the failure; by default, each line would print a traceback."""
        if not self.failed:
            self.failed = True
            say(_no_log(self.baseFilename, sys.exc_info()[1]))

    def close(self) -> None:
        """Close the file; flushing its last lines may fail as well."""
        with suppress(OSError):
            super().close()


class _LogTo:
    """Write the log of `sq` to `file` for the block; a failure is reported only."""

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
        self.previous_propagate, log.propagate = log.propagate, False

    def __exit__(self, *_: object) -> None:
        log.removeHandler(self.handler)
        log.propagate = self.previous_propagate
        self.handler.close()
