"""Latency of a quantized network where it will run, beside full precision and 8 bits."""
