"""Calibration: ``draw(model, dataset) -> Split``, the images a method may look at."""
