"""The outside peer solves our problem: the same H, the same grid, and so the same codes."""

import builtins
import importlib.util
import sys

import pytest
import torch

from sq.errors import SqError
from sq.grid import uniform
from sq.hessian.layer_statistics import relative_error
from sq.quantizer import layerwise
from sq.solver import brevitas_gptq, gptq

needs_brevitas = pytest.mark.skipif(
    importlib.util.find_spec("brevitas") is None, reason="needs brevitas"
)


def fitted(W, bits, symmetric):
    return uniform.fit(
        W, bits, symmetric=symmetric, range="mse", norm=2.4, steps=80, shrink=0.2, hessian=None
    )


@needs_brevitas
@pytest.mark.parametrize("order", ["natural", "act"])
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize(
    ("G", "O", "I", "bits"), [(1, 16, 72, 3), (1, 6, 30, 2), (4, 5, 18, 4), (8, 1, 9, 3)]
)
def test_same_problem_same_codes(correlated, order, symmetric, G, O, I, bits):
    W, H = (t.float() for t in correlated(1, G, O, I))
    grid = fitted(W, bits, symmetric)
    theirs = brevitas_gptq.solve(W, H, grid, order=order, blocks=100)
    ours = gptq.solve(W, H, grid, order=order, block=64)
    assert theirs.dtype == torch.int32
    # float32: a value between two codes may fall to either side, and moves what comes after it
    assert (theirs == ours).double().mean() > 0.99
    errors = [relative_error(W, grid.decode(codes), H.double()) for codes in (theirs, ours)]
    assert errors[0] == pytest.approx(errors[1], rel=0.01)


@needs_brevitas
def test_double_precision_leaves_no_difference(correlated):
    W, H = correlated(2, 1, 16, 60)
    grid = fitted(W, 3, symmetric=False)
    theirs = brevitas_gptq.solve(W, H, grid, order="natural", blocks=7)
    assert torch.equal(theirs, gptq.solve(W, H, grid, order="natural", block=64))


@needs_brevitas
@pytest.mark.parametrize("G", [1, 3])
def test_grid_is_ours_to_the_bit(correlated, G):
    W, _ = (t.float() for t in correlated(3, G, 5, 40))
    for bits, symmetric in ((1, False), (2, True), (3, False), (8, False)):
        grid = fitted(W, bits, symmetric)
        make_layer, _ = brevitas_gptq._brevitas()
        quantized = make_layer(W, grid).quant_weight().value.detach().reshape(W.shape)
        assert torch.equal(quantized, grid.nearest(W))


@needs_brevitas
def test_inputs_stay_and_what_is_prepared_is_only_started(correlated):
    W, H = (t.float() for t in correlated(4, 1, 6, 20))
    grid = fitted(W, 3, symmetric=False)
    copies = W.clone(), H.clone()
    start = brevitas_gptq.prepare(W, H, grid, order="act", blocks=5)
    assert torch.equal(start(), brevitas_gptq.solve(W, H, grid, order="act", blocks=5))
    assert torch.equal(W, copies[0])
    assert torch.equal(H, copies[1])


@needs_brevitas
@pytest.mark.parametrize("broken", ["negative", "nan"])
def test_not_positive_definite_is_an_error(correlated, broken):
    W, H = (t.float() for t in correlated(5, 2, 4, 12))
    grid = fitted(W, 3, symmetric=False)
    H[1] = -H[1] if broken == "negative" else torch.nan
    with pytest.raises(torch.linalg.LinAlgError):
        brevitas_gptq.solve(W, H, grid, order="natural", blocks=3)


@needs_brevitas
def test_dead_inputs_are_rounded_as_ours(correlated):
    W, H = correlated(6, 1, 6, 20, damp=0.0)
    H[:, 4], H[:, :, 4] = 0, 0
    W, H = W.float(), layerwise.damped(H, 0.01).float()
    grid = fitted(W, 3, symmetric=False)
    theirs = brevitas_gptq.solve(W, H, grid, order="natural", blocks=100)
    assert torch.equal(theirs[:, :, 4], grid.encode(W)[:, :, 4])


def test_without_brevitas_the_command_that_installs_it(correlated, monkeypatch):
    real = builtins.__import__

    def none(name, *rest, **named):
        if name.split(".")[0] == "brevitas":
            raise ImportError("No module named 'brevitas'")
        return real(name, *rest, **named)

    for name in [n for n in sys.modules if n.split(".")[0] == "brevitas"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(builtins, "__import__", none)
    W, H = correlated(7)
    with pytest.raises(SqError, match=r"python -m pip install 'brevitas>=0\.13\.4'"):
        brevitas_gptq.solve(W, H, fitted(W, 3, symmetric=False), order="act", blocks=1)


@needs_brevitas
def test_other_grids_are_refused(correlated):
    W, H = correlated(8)
    grid = fitted(W, 3, symmetric=False)

    class Squares:
        levels, scale, low = grid.levels, grid.scale, grid.low

        def decode(self, codes):
            return grid.decode(codes) ** 2

    with pytest.raises(SqError, match="needs a uniform grid, got Squares"):
        brevitas_gptq.solve(W, H, Squares(), order="act", blocks=1)
