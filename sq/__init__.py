"""sq: reproducible post-training quantization experiments for vision networks."""

__version__ = "0.1.0"
