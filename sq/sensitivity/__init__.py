"""Sensitivity metrics: ``score(problem) -> {layer: {bits: cost}}``."""
