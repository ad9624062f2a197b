"""Trackers: ``open(run) -> Tracker``, a mirror of records elsewhere. The record is the truth."""
