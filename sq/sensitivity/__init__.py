"""Sensitivity metrics: ``score(problem) -> Cost``."""
