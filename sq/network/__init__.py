"""Networks as modules of PyTorch: how they are copied, checked and run."""
