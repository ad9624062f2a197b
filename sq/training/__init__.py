"""Training of quantized networks."""
