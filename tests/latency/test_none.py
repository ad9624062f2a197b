"""No latency."""

from sq.latency import none


def test_nothing_is_said():
    assert none.measure(None) == {}
