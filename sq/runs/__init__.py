"""Runs and sweeps: how a command becomes configs."""
