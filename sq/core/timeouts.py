"""Run a call that may hang in a daemon thread, with a time limit."""

from __future__ import annotations

import threading
from collections.abc import Callable

GRACE = 5  # seconds beyond the limit that the action has itself


def within(action: Callable[[], None], seconds: float) -> None:
    """Run `action`, which has a limit of `seconds` itself, and raise what it raises.

    Raises
    ------
    TimeoutError : it is still running `GRACE` seconds after its limit. It goes on in its thread,
        which does not keep the process from ending
    """
    errors: list[Exception] = []

    def attempt() -> None:
        try:
            action()
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=attempt, name="time limit", daemon=True)
    thread.start()
    thread.join(seconds + GRACE)
    if thread.is_alive():
        raise TimeoutError(f"no answer within {seconds + GRACE:g} s")
    if errors:
        raise errors[0]
