"""Solvers: ``solve(W, H, grid) -> codes``, a paper's algorithm on one page each.

`W` is (G, O, I), `H` is (G, I, I), damped and positive definite; codes are (G, O, I) int32.
Inputs are never changed; an H that is not positive definite raises `torch.linalg.LinAlgError`.
"""
