"""Benchmarks: solvers side by side in one process, on the same layer, Hessian and grid."""
