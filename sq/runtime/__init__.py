"""PyTorch on this machine: threads, memory, batches, timers and random estimates."""
