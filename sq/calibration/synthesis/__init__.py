"""Calibration images made from a network alone."""
