"""Export: what a quantized network is written to, for use without the run that made it."""
