"""Quantizers: ``quantize(problem) -> QuantizedModel``, the codes of a whole network."""
