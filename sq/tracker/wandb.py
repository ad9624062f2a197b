"""Weights & Biases: one W&B run for each run of sq, offline unless asked.

Nothing here may stop or fail a run: errors of the client are logged, and the run goes on. The
record stays the source of truth. `python -m sq track` sends records later by the same code, and
reports errors.
"""

from __future__ import annotations

import functools
import io
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sq.core.progress import say
from sq.core.timeouts import within
from sq.errors import SqError
from sq.tracker import run_page, wandb_client
from sq.tracker.run_page import Destination, Mode, Page

RESPONSE_LIMIT = 10  # seconds at most for the server's first response
log = logging.getLogger("sq")


def open(
    record: dict[str, Any], *, mode: Mode, project: str, entity: str | None, dir: str, timeout: int
) -> Tracker:
    """Start a W&B run for the run whose record has begun.

    Parameters
    ----------
    record : with `key`, `name`, `config` and `choices`
    mode : "offline" writes to `dir`/wandb, for ``wandb sync`` later; "disabled" writes nothing
    project, entity : where online runs go; entity None is the user's own
    dir : folder for W&B's files
    timeout : seconds to wait for the client to start, and as many for it to finish
    """
    return Tracker(record, Destination(mode, project, entity, dir, timeout))


def summarise(
    draw: Callable[[], Page],
    *,
    mode: Mode,
    project: str,
    entity: str | None,
    dir: str,
    timeout: int,
) -> None:
    """Send the page of a whole experiment at the end of its sweep, unless tracking is disabled."""
    if mode != "disabled":
        where = Destination(mode, project, entity, dir, timeout)
        _guarded("leave the summary", lambda: _send(draw(), where), 2 * timeout)


class Tracker:
    """A W&B run: it gets the config when it opens, results, layers and status when it closes."""

    def __init__(self, record: dict[str, Any], where: Destination):
        self.timeout = where.timeout
        self.run: Any = None
        self.config: dict[str, Any] = {}
        if where.mode == "disabled":
            return

        def start() -> None:
            page = run_page.run(record)
            self.config = page.config
            self.run = _start(page, where)

        _guarded("start", start, self.timeout)

    def close(self, record: dict[str, Any]) -> None:
        """Send the results of a finished run, or mark a failed one as failed."""
        if self.run is None:
            return

        def finish() -> None:
            _finish(self.run, run_page.run(record), self.config)

        _guarded("finish", finish, self.timeout)


def place(where: Destination) -> str:
    """Return where runs go as text: the server of W&B's settings, or the folder, and the project.

    Raises
    ------
    SqError : there is no client
    """
    project = f"{where.entity}/{where.project}" if where.entity else where.project
    if where.mode == "offline":
        return f"{project}, offline in {Path(where.dir).absolute() / 'wandb'}"
    return f"{project} at {wandb_client.load(where).setup().settings.base_url}"


def check(where: Destination) -> None:
    """Check that runs can be uploaded: there is a key, and the server responds and accepts it.

    Raises
    ------
    SqError : there is no client, no key or no response, or the key is refused
    """
    wandb, wait = wandb_client.load(where), max(1, min(where.timeout, RESPONSE_LIMIT))
    if where.mode == "offline":
        return

    def ask() -> None:
        wandb_client.log_in(wandb)
        _ = wandb.Api(timeout=wait).viewer  # `wandb.login` asks the server the first time only

    try:
        within(ask, wait)
    except Exception as error:
        reason = _reason(error)
        if isinstance(error, TimeoutError) or "did not respond in time" in reason:
            reason = (
                f"no answer within {wait} s; check the network, or upload with --mode offline and "
                "`wandb sync`"
            )
        raise SqError(f"W&B takes no runs for {place(where)}: {reason}") from error


def upload(page: Page, where: Destination) -> None:
    """Send one page, which replaces an earlier one with its id.

    Raises
    ------
    SqError : it was not sent, or not in whole
    """
    try:
        within(lambda: _send(page, where), 2 * where.timeout)
    except Exception as error:  # the client may raise anything
        if "previously created and deleted" in str(error):
            cure = "restore it there (it can be for 7 days), or upload to another --project"
            raise SqError(
                f"run {page.id} was deleted in W&B, which keeps its id: {cure}"
            ) from error
        raise SqError(_reason(error)) from error


def _send(page: Page, where: Destination) -> None:
    _finish(_start(page, where), page)


def _start(page: Page, where: Destination) -> Any:
    """Start a W&B run with the part of a page that is known before the run."""
    wandb = wandb_client.load(where)
    Path(where.dir).mkdir(parents=True, exist_ok=True)
    if where.mode == "online":
        wandb_client.log_in(wandb)
    return wandb.init(
        project=where.project,
        entity=where.entity,
        dir=where.dir,
        mode=where.mode,
        # An id without `resume` replaces the W&B run with that id. Resumed, it would be extended.
        id=page.id,
        group=page.group,
        job_type=page.job_type,
        name=page.title,
        config=page.config,
        tags=page.tags,
        reinit="finish_previous",
        settings=wandb_client.settings(wandb, where.timeout),
    )


def _finish(run: Any, page: Page, begun: dict[str, Any] | None = None) -> None:
    """Send the results of a run, and its config again unless it is the one it has `begun` with."""
    from PIL import Image

    wandb = wandb_client.module()
    try:
        if begun is not None and begun != page.config:
            run.config.update(page.config, allow_val_change=True)
        run.summary.update(page.summary)
        media: dict[str, Any] = {}
        for name, table in page.tables.items():
            media[name] = wandb.Table(columns=table.columns, data=table.rows)
        for name, png in page.pictures.items():
            media[name] = wandb.Image(Image.open(io.BytesIO(png)))
        if media:
            run.log(media)
    finally:  # the run must not stay open after an error
        run.finish(exit_code=page.exit_code)


def _guarded(what: str, action: Callable[[], None], timeout: int) -> None:
    """Do `action` within `timeout` seconds; an error or a timeout is logged and reported only."""
    try:
        within(action, timeout)
    except TimeoutError:
        log.warning("W&B did not %s within %s s; going on without it", what, timeout)
        _report_once(f"W&B did not {what} within {timeout} s")
    except Exception as error:  # the client may raise anything, which must not fail the run
        log.warning("W&B could not %s: %s", what, error)
        _report_once(f"W&B could not {what}: {_reason(error)}")


@functools.cache
def _report_once(failure: str) -> None:
    """Report once in a process why runs are not tracked: a sweep would repeat it for each run."""
    say(f"{failure}; runs go on without it, their records are whole (tracker=none turns it off)")


def _reason(error: Exception) -> str:
    """Return the first line of an error of the client; the others advise on its own settings."""
    if isinstance(error, OSError) and error.strerror:
        file = f" ({error.filename})" if error.filename else ""
        return f"{error.strerror}{file}"
    return str(error).strip().partition("\n")[0] or type(error).__name__
