"""One job: look for the run's record, else run, and leave a record whatever happens."""

from __future__ import annotations

import json
import logging
import os
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sq import claim, heap, mirror, record
from sq.build import build
from sq.config import check
from sq.console import say
from sq.errors import SqError, one_line

TRACEBACKS = os.environ.get("HYDRA_FULL_ERROR", "0") not in ("", "0")  # what the user asked for, before sq.cli sets it
POLL = 2.0  # seconds between two looks at a run that another process is doing
log = logging.getLogger("sq")


def attempt(config: Mapping[str, Any], choices: Mapping[str, str], *, wait: bool) -> tuple[record.Record | None, str]:
    """Return the job's record, None if there is none, and why it failed ("" if it did not); see `execute`."""
    made: record.Record | None = None
    try:
        made = execute(config, choices, wait=wait)
        failure, trace = (made or {}).get("error", ""), (made or {}).get("traceback", "")
    except SqError as error:
        failure, trace = str(error), traceback.format_exc()
    if trace and TRACEBACKS:
        say(trace)
    return made, failure


def execute(config: Mapping[str, Any], choices: Mapping[str, str], *, wait: bool) -> record.Record | None:
    """Return the record of `config`: the one on disk if that run is done, else that of a new run.

    A run that fails leaves a record too, with status "failed", its error and traceback, and the next call
    tries again. An interrupt leaves nothing. A run that another process is doing is waited for, or left to it:
    the result is None then, unless `wait`.

    Raises
    ------
    SqError : no run was possible: settings that make no sense, a damaged record, a folder that cannot be written
    """
    check(config)
    file = record.path(config)
    found = record.read(file)
    if found and found["status"] == "done" and not config["rerun"]:
        return found
    record.probe(file.parent)
    held = _claimed(file) if wait else claim.take(file)
    if held is None:
        return None
    try:
        record.probe(file.parent)  # which also makes an NFS client look again for files it did not find before
        now = record.read(file)
        if now is not None and now != found:
            return now  # another process has done it meanwhile
        with _LogTo(Path(config["outputs"]) / config["name"] / f"{file.stem}.log"):
            done = found if found is not None and found["status"] == "done" else None
            made = _run(config, choices, file.stem, done)
            if held.lost():
                raise SqError(f"another launcher took this process for dead and is doing {file.stem} again")
            # A failed attempt at `rerun` must not cost the figures that are there: it is kept beside them.
            spare = done is not None and made["status"] == "failed"
            record.write(record.failed_rerun(file) if spare else file, made)
            if not spare:
                record.failed_rerun(file).unlink(missing_ok=True)
        return made
    finally:
        held.release()


def _claimed(file: Path) -> claim.Claim:
    """Return the claim to a run, as soon as nobody else holds it."""
    told = False
    while (held := claim.take(file)) is None:
        if not told and (who := claim.holder(file)):
            say(f"    waiting for {who['host']}, process {who['pid']}, which runs it since {who['since']}")
            told = True
        time.sleep(POLL)
    return held


def outcome(made: record.Record) -> str:
    """Return one line on what came of a run that is done."""
    figures, seconds = made["results"], sum(made["seconds"].values())
    return f"relative error {figures['relative_error']:.5f}, drop {figures['drop']:.3g}, {seconds:.1f} s"


def _run(
    config: Mapping[str, Any], choices: Mapping[str, str], key: str, earlier: record.Record | None
) -> record.Record:
    """Return the record of a run; its tracker keeps to the `earlier` one where that is kept."""
    made: record.Record = {"record": record.VERSION, "key": key, "name": config["name"], "status": "failed"}
    made |= {"choices": dict(choices), "config": dict(config)}
    tracker = None
    try:
        import_torch()
        device = prepare(config)
        from sq import pipeline, provenance

        made["provenance"] = provenance.collect(device)
        tracker = build(config["tracker"], "tracker")(made)
        figures = pipeline.run(config, device)
        json.dumps(figures, allow_nan=False)  # what cannot be written is a failure too
        record.keep_ids(config, figures["calibration"]["ids"], figures.pop("calibration_ids"))
        made |= figures
        made["status"] = "done"
    except Exception as error:  # whatever it is, it belongs in the record
        log.exception("failed")
        made["error"] = one_line(error)
        made["traceback"] = traceback.format_exc()
    if tracker is not None:
        tracker.close(mirror.kept(made, earlier))
    return made


def import_torch() -> None:
    """Import torch and torchvision, and explain the one way in which that commonly fails.

    Raises
    ------
    SqError : torchvision was built for another torch
    """
    # Both are read once, when the libraries start.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    # Threads that wait by spinning stand in each other's way where cores are shared: OBQ took 185 s beside one
    # other busy process, 10 s with threads that sleep (results/LOG.md).
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    heap.keep()
    try:
        import torch  # noqa: F401
        import torchvision  # noqa: F401
    except (RuntimeError, OSError) as error:
        raise SqError(
            f"torch and torchvision do not fit together ({one_line(error)}): install both from the same "
            "index, python -m pip install --force-reinstall 'torch>=2.14' 'torchvision>=0.29'"
        ) from error


def prepare(config: Mapping[str, Any]) -> Any:
    """Set up PyTorch for a reproducible run and return the device (a `torch.device`).

    Raises
    ------
    SqError : a device that does not exist here
    """
    import torch

    name = config["device"]
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).partition(". ")[0]
        raise SqError(f"device={config['device']}: {reason}; allowed: auto, cpu, cuda, cuda:N") from error
    if config["threads"]:
        torch.set_num_threads(config["threads"])
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = False
    torch.use_deterministic_algorithms(True, warn_only=True)
    # On by default with the line above: fills every new tensor with NaN first, a tenth of a forward pass. It would only
    # make the reading of memory never written repeatable, which is a fault wherever it happens.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.manual_seed(config["seed"])
    return device


class _LogTo:
    """Send what `sq` logs to `file` for a while; go on without if that cannot be."""

    def __init__(self, file: Path):
        self.file = file

    def __enter__(self) -> None:
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            self.handler: logging.Handler = logging.FileHandler(self.file, mode="w")
        except OSError:
            self.handler = logging.NullHandler()
        self.handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        log.addHandler(self.handler)
        log.setLevel(logging.INFO)
        self.propagated, log.propagate = log.propagate, False

    def __exit__(self, *_: object) -> None:
        log.removeHandler(self.handler)
        log.propagate = self.propagated
        self.handler.close()
