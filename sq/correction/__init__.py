"""Corrections: ``correct(net, reference, batch) -> report``, repairs that leave the codes alone."""
