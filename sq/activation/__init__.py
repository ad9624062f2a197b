"""Activations: ``fit(histogram, bits) -> Grid``, the values that one tensor fed to a layer may take.

`sq.activation.insertion.quantize` observes the tensors and calls it for each; `none` stands in the
place of all that.
"""
