"""Trackers show records elsewhere: ``open(run) -> Tracker``, ``summarise(draw)``."""
