"""Networks as modules of PyTorch: how they are run, rewritten into plain layers, and how much of them is quantized."""
