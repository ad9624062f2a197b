"""Learned rounding and learned step sizes: what the learning quantizers share."""
