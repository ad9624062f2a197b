"""Solvers on the layers of a trained network: ResNet-20's, in float32, statistics of CIFAR-10 images."""

import pytest
import torch
from cli_helpers import compose
from omegaconf import OmegaConf

from sq.calibration import subset
from sq.config.instantiate import build
from sq.hessian import layer_statistics
from sq.hessian.layer_statistics import relative_error
from sq.network import geometry
from sq.quantizer.layerwise import damped
from sq.solver import obq, textbook_obq
from sq.types.problem import solution


@pytest.fixture(scope="module")
def problems(cifar10):
    # (W, damped H, H) of every layer
    model = build(compose("model=resnet20")[0]["model"], "model")()
    batch = subset.draw(model, cifar10, images=300, seed=0, inputs="reference")
    found = layer_statistics.collect(model, batch, batch_size=100, positions=1.0, seed=0)
    hessians = [found.layers[layer.name].hessian for layer in model.layers]
    weights = [geometry.weight(layer.module) for layer in model.layers]
    return [(W, damped(H, 0.01).float(), H) for W, H in zip(weights, hessians, strict=True)]


def errors(solve, problems, grids):
    found = []
    for (W, Hd, H), grid in zip(problems, grids, strict=True):
        codes, own = solution(solve(W, Hd, grid), grid)
        found.append(relative_error(W, own.decode(codes), H))
    return torch.tensor(found)


def solver(conf, name):
    part = OmegaConf.to_container(OmegaConf.load(conf / "quantizer" / f"{name}.yaml"))
    return build(part["solve"], name)


def test_obq_leaves_the_errors_of_the_textbook_form(problems, fit):
    # the wide ones take the textbook form a minute
    narrow = [p for p in problems if p[0].shape[2] < 500]
    grids = [fit(W, 3) for W, _, _ in narrow]
    assert len(narrow) == 15
    ours = errors(lambda *a: obq.solve(*a, outliers=True, memory_gib=1.0, block=32), narrow, grids)
    slow = errors(lambda *a: textbook_obq.solve(*a, outliers=True, rows=32), narrow, grids)
    # float32: of two columns that cost nearly the same either may come first, and all after it
    # differ
    assert ((ours - slow).abs() <= 1e-3 * slow).all()


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_errors_beside_obq(problems, fit, pytestconfig, bits):
    conf = pytestconfig.rootpath / "conf"
    grids = [fit(W, bits) for W, _, _ in problems]
    exact, shared, plus = (
        errors(solver(conf, name), problems, grids).mean()
        for name in ("obq", "sensiquant", "sensiquant_plus")
    )
    assert plus <= exact
    assert shared <= {2: 1.25, 3: 1.05, 4: 1.05}[bits] * exact
