"""Calibration: ``draw(model, dataset) -> Calibration``, the images a method may look at."""
