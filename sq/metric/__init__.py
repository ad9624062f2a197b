"""Metrics: ``measure(outputs, reference, labels) -> {name: figure}``."""
