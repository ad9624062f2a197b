"""Durations as text, in the same form in every message."""

UNITS = ((3600.0, "h"), (60.0, "min"))  # seconds, largest unit first


def words(seconds: float | None) -> str:
    """Return `seconds` as text such as "2.5 h", "?" for None."""
    if seconds is None:
        return "?"
    for unit, name in UNITS:
        if seconds >= 2 * unit:
            return f"{seconds / unit:.1f} {name}"
    return f"{seconds:.0f} s"
