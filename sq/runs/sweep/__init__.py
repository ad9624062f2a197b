"""Sweeps: from override lists to runs, what is left to do, and their launch."""
