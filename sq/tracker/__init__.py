"""Trackers: ``open(run) -> Tracker``, ``summarise(draw)``, a mirror of records elsewhere. The record is the truth."""
