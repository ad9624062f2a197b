"""Results kept between runs: a store of tensors with eviction, and checkpoints of unfinished work."""
