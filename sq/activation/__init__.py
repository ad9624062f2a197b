"""Activation grids: ``fit(histogram, bits) -> Grid``, the values that a layer input may take.

`sq.activation.insertion.quantize` observes the inputs and calls `fit` for each. The choice `none`
replaces all of that.
"""
