"""Networks as PyTorch modules: passes and hooks, plain layers, folding, and derivatives."""
