"""Allocations: ``allocate(cost, layers, budget) -> Widths``."""
