"""Statistics of layer inputs: H, its Gram products and cache, and the importance of weights."""
