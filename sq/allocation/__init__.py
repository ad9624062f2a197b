"""Allocations: ``allocate(cost, layers, budget) -> {layer: bits}``."""
