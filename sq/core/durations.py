"""Durations in words, the same wherever one is told."""

UNITS = ((3600.0, "h"), (60.0, "min"))


def words(seconds: float | None) -> str:
    """Return `seconds` in words, "?" for None."""
    if seconds is None:
        return "?"
    for unit, name in UNITS:
        if seconds >= 2 * unit:
            return f"{seconds / unit:.1f} {name}"
    return f"{seconds:.0f} s"
