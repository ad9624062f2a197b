"""Statistics of layer inputs: H, its Gram products and cache, and derived importance of weights."""
