"""Grids: the values a weight may take, and how they are fitted to a tensor."""
