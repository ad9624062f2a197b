from sq.core import durations


def test_durations():
    assert [durations.words(s) for s in (None, 0.4, 119.6, 120.0, 7100.0, 7200.0, 36000.0)] == [
        "?", "0 s", "120 s", "2.0 min", "118.3 min", "2.0 h", "10.0 h",
    ]  # fmt: skip
