"""What may hang is done beside the thread that needs it, which waits so long and no longer."""

from __future__ import annotations

import threading
from collections.abc import Callable

GRACE = 5  # seconds more than a client was given itself, before it is left behind


def within(action: Callable[[], None], seconds: float) -> None:
    """Do `action`, which was given `seconds` itself; raise what it raises, or a `TimeoutError` if it goes on after it.

    It is left to its thread then, which does not keep the process from ending.
    """
    raised: list[Exception] = []

    def attempt() -> None:
        try:
            action()
        except Exception as error:
            raised.append(error)

    thread = threading.Thread(target=attempt, name="beside", daemon=True)
    thread.start()
    thread.join(seconds + GRACE)
    if thread.is_alive():
        raise TimeoutError(f"no answer within {seconds + GRACE:g} s")
    if raised:
        raise raised[0]
