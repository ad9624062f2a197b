"""How far two right answers of one computation may lie apart: bounds from sizes, precision and magnitudes.

A sum or a matrix product is not one number but as many as there are orders of summation: BLAS
libraries, instruction sets and numbers of threads each choose their own, and fused multiply-adds
round once where others round twice. A test must hold for all of them. So a tolerance is never a
number that happened to suffice on one machine; it is derived here:

* ``u`` is half the distance from 1 to the next number, 2^-24 in float32 and 2^-53 in float64
(`unit`).
* A sum of n products, in whatever order, with or without fused multiply-adds, is off by at most
  ``gamma(n) * sum |a| |b|`` with ``gamma(n) = n u / (1 - n u)`` (`gamma`; Higham 2002, Accuracy and
  Stability of Numerical Algorithms, 2nd edition, equation 3.3 to 3.5). It depends on the
  magnitudes, not on the result, which may be tiny where terms cancel. `of_product` and `of_sum`
  return this bound for each entry.
* A Cholesky solve returns the solution of a system that is off by ``gamma(3 n + 1) |R^T| |R|``
(theorem 10.4 there),
  so that its result is off by the condition number times as much, `of_solve`. The same holds of
  inverses.
* What is computed in k such steps one after the other, each relative to what it is given, is off by
``k`` times
  the step's bound to first order: `steps` in the functions.

Both sides of a comparison are computed: where the wanted side is in float64 its own error is
negligible beside float32's; where both have the same precision, both may be off: `relative`,
`of_solve` and `of_layers` count both, the others are to be doubled.

What pytest's `approx` allows by default, 1e-6 of the wanted number, is ``gamma(9e9)`` in float64:
it covers what is a few float64 operations without cancellation (means, ratios, sums of a few
numbers) and numbers read back from JSON, and stands without further bounds there. In float32 it is
``gamma(16)``, so it covers copies and scales, not sums. Elsewhere a tolerance that is not derived
says why: statistical, an approximation, or decimals printed in a paper.

What does not hang on rounding is compared exactly: copies, codes read back, counts, sums of small
integers, the same code run twice on one machine. Decisions (codes, orders, the least of several)
are compared exactly where their margin is far above these bounds, and by their objective where it
may not be.

A derived bound is a worst case, mostly 10 to 100 times what is seen: a wrong formula is off by much
more.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


def unit(dtype: torch.dtype) -> float:
    """Return u, the largest relative error of one rounded operation: 2^-24 in float32, 2^-53 in float64."""
    return torch.finfo(dtype).eps / 2


def gamma(n: int, dtype: torch.dtype) -> float:
    """Return the relative error, at most, of `n` rounded operations one after the other."""
    grown = n * unit(dtype)
    assert grown < 0.1, f"{n} operations in {dtype} are too many to say anything of their result"
    return grown / (1 - grown)


def relative(n: int, dtype: torch.dtype, steps: int = 1) -> float:
    """Return a relative tolerance for sums of `n` terms of one sign, or `steps` of them one after the other.

    It is for pytest's `approx(rel=...)`: without cancellation, the error relative to the result is
    that relative to the terms. Two computations are compared, each of which may be off.
    """
    return 2 * steps * gamma(n + 2, dtype)


def of_sum(terms: Tensor, dim: int | tuple[int, ...], dtype: torch.dtype | None = None) -> Tensor:
    """Return the error, at most, of the sum of `terms` over `dim`, computed in `dtype` (theirs if None)."""
    dims = (dim,) if isinstance(dim, int) else dim
    count = math.prod(terms.shape[d] for d in dims)
    return gamma(count, dtype or terms.dtype) * terms.double().abs().sum(dims)


def of_product(a: Tensor, b: Tensor, dtype: torch.dtype | None = None, more: int = 0) -> Tensor:
    """Return the error, at most, of each entry of ``a @ b`` computed in `dtype` (that of `a` if None), float64.

    Parameters
    ----------
    a, b : (..., m, n) and (..., n, k)
    more : operations beside: of entries of `a` and `b` that are themselves rounded, or of factors
    after the product
    """
    return gamma(a.shape[-1] + more, dtype or a.dtype) * (a.double().abs() @ b.double().abs())


def of_quadratic(error: Tensor, matrix: Tensor, more: int = 0) -> Tensor:
    """Return the error, at most, of ``error @ matrix @ error`` for each row of `error` (..., O, I), (..., O).

    It is two sums of n terms each, ``gamma(2 n) |e|^T |A| |e|``. Two of them are compared: it is
    for both.

    Parameters
    ----------
    matrix : (..., I, I)
    more : operations beside
    """
    size = error.double().abs()
    terms = (size @ matrix.double().abs() * size).sum(-1)
    return 2 * gamma(2 * error.shape[-1] + more, error.dtype) * terms


def of_layers(net: nn.Module, dtype: torch.dtype, passes: int = 1) -> float:
    """Return the relative error (of norms), to be expected at most, of what a network's layers make in turn.

    Each layer adds ``gamma(n + 2) | |W| |x| | / | W x |``, n the products of an output; errors add
    up over layers to first order. Where signs are random the ratio of norms is about sqrt(n), and
    rounding errors, which are as random, add up to sqrt(n) u and not to n u (Higham and Mary 2019,
    A new approach to probabilistic rounding error analysis): together n u, which is what is
    returned. Two computations are compared, each of which may be off.

    Parameters
    ----------
    passes : through all layers: 1 for outputs, 2 for gradients (forward and back), 4 for products
    with the Hessian
    """
    terms = [p[0].numel() + 2 for p in net.parameters() if p.ndim > 1]
    others = sum(p.ndim == 1 for p in net.parameters())  # biases, and scales of normalisation
    return 2 * passes * (sum(gamma(n, dtype) for n in terms) + gamma(2 * others + 1, dtype))


def of_error(net: nn.Module, error: float, dtype: torch.dtype) -> float:
    """Return the relative error, to be expected at most, of `error` = ``|y - z|^2 / |z|^2`` of a network's outputs.

    The difference is ``sqrt(error)`` of what is subtracted, so that its own error is that of
    `of_layers` over this.
    """
    return 2 * of_layers(net, dtype) / math.sqrt(error)


def of_gram(
    first: Tensor, second: Tensor, positions: int, dtype: torch.dtype, more: int = 0
) -> float:
    """Return the error, at most, of entries (and of the norm) of 2 X Y^T / N summed in `dtype`.

    ``sum |x| |y| <= |X| |Y|`` in Frobenius norms, which are the traces of ``2 X X^T / N`` and ``2 Y
    Y^T / N``.

    Parameters
    ----------
    first, second : these two (G, I, I)
    positions : N
    more : operations beside, as of what computed X and Y
    """
    traces = [own.double().diagonal(dim1=-2, dim2=-1).sum(-1).max() for own in (first, second)]
    return 2 * gamma(positions + more, dtype) * math.sqrt(float(traces[0] * traces[1]))


def of_solve(matrix: Tensor, dtype: torch.dtype | None = None, steps: int = 1) -> float:
    """Return the relative error (of norms), at most, of solving with the positive definite `matrix` (..., n, n).

    It is ``cond(matrix)`` times the backward error of Cholesky's factors and two triangular solves,
    ``gamma(3 n + 1) n``, the n from ``| |R^T| |R| | <= n |A|`` (Higham 2002, theorem 10.4 and
    equation 10.7).

    Parameters
    ----------
    steps : such solves (or inverses) one after the other
    """
    n = matrix.shape[-1]
    values = torch.linalg.eigvalsh(matrix.double())
    condition = float((values[..., -1] / values[..., 0]).max())
    assert condition > 0, "the matrix is not positive definite"
    bound = 2 * steps * n * gamma(3 * n + 1, dtype or matrix.dtype) * condition
    assert bound < 1, f"a condition of {condition:.2g} is too large to say anything of the solution"
    return bound


def assert_within(found: Tensor, wanted: Tensor, bound: Tensor | float, what: str = "") -> None:
    """Assert that no entry of `found` is farther from `wanted` than its `bound`; say by how much the worst one is."""
    assert found.shape == wanted.shape, f"{tuple(found.shape)} is not {tuple(wanted.shape)}"
    apart = (found.detach().double() - wanted.detach().double()).abs()
    over = apart / torch.as_tensor(bound, dtype=torch.float64).clamp(
        min=torch.finfo(torch.float64).tiny
    )
    worst = float(over.max()) if over.numel() else 0.0
    assert worst <= 1, (
        f"{what} {float(apart.max()):.3g} apart, {worst:.3g} times what rounding explains"
    )


def assert_near(found: Tensor, wanted: Tensor, relative: float, what: str = "") -> None:
    """Assert that `found` is `wanted` up to a `relative` error of norms, as `of_solve` bounds it."""
    assert found.shape == wanted.shape, f"{tuple(found.shape)} is not {tuple(wanted.shape)}"
    apart = float(torch.linalg.vector_norm(found.detach().double() - wanted.detach().double()))
    size = float(torch.linalg.vector_norm(wanted.detach().double()))
    assert apart <= relative * size, (
        f"{what} {apart / size:.3g} apart, {relative:.3g} is what rounding explains"
    )
