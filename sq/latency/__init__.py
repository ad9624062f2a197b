"""Latency: how long a quantized network takes where it is to run, beside full precision and 8 bits in the same run."""
