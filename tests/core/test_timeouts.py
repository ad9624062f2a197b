"""Patience that ends."""

import threading
import time

import pytest

from sq.core import timeouts


def divide():
    raise ZeroDivisionError


def test_done_or_raised_in_time():
    done = []
    timeouts.within(lambda: done.append(1), 0)
    assert done == [1]
    with pytest.raises(ZeroDivisionError):
        timeouts.within(divide, 0)


def hang(free):
    free.wait(60)


def test_what_hangs_is_left_behind(monkeypatch):
    monkeypatch.setattr(timeouts, "GRACE", 0.1)
    free = threading.Event()
    start = time.monotonic()
    with pytest.raises(TimeoutError, match=r"no answer within 0\.3 s"):
        timeouts.within(lambda: hang(free), 0.2)
    free.set()
    assert 0.2 < time.monotonic() - start < 20
