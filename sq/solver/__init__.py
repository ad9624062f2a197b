"""Solvers: ``solve(W, H, grid) -> codes``, one published algorithm for each module.

`W` is (G, O, I), `H` is (G, I, I), damped and positive definite; codes are (G, O, I) int32. Inputs
are never changed. An H that is not positive definite raises `torch.linalg.LinAlgError`.
"""
