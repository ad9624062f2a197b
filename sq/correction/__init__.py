"""Corrections: ``correct(net, reference, batch) -> report`` improves a network, codes unchanged."""
