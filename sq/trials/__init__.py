"""Trials: ``measure(trial) -> dict``, other bits than the allocation's measured, to tell what prices are worth."""
