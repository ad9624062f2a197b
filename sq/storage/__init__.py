"""Results that later runs reuse: a store of tensors, and checkpoints of unfinished work."""
