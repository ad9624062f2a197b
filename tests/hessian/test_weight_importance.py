"""Importance of weights: asked for by the grid, computed once, and in every solver's grids."""

import json

import pytest
import torch
from cli_helpers import call, compose, records

from sq.config import renamed_targets
from sq.config.instantiate import build
from sq.hessian import label_free_scores, weight_importance
from sq.network import geometry, tracing
from sq.network.rounding_sites import Sites
from sq.records import migrations, record
from sq.storage.store import NOWHERE, Store
from sq.types.images import Batch
from sq.types.problem import Problem

SOLVERS = ("rtn", "sensiquant", "obq", "gptq")


def grid(*words):
    return build(compose(*words)[0]["grid"], "grid")


@pytest.fixture
def batch(digits_train):
    return Batch(digits_train.x[:40], digits_train.y[:40], digits_train.ids[:40])


@pytest.fixture(scope="module")
def model(resnet):
    return tracing.trace(resnet, torch.zeros(1, 1, 8, 8))


@pytest.mark.parametrize("range", ["minmax", "mse"])
def test_ranges_that_do_not_ask_cost_nothing(monkeypatch, model, batch, range):
    monkeypatch.setattr(label_free_scores, "_output_shape", None)
    assert weight_importance.collect(grid(f"grid.range={range}"), model, batch, NOWHERE) == ({}, {})


def test_it_is_the_label_free_hessian_and_kept_for_other_runs(monkeypatch, tmp_path, model, batch):
    fit, kept = grid("grid.range=hmse", "grid.hessian.images=16"), Store(str(tmp_path), 1.0, {})
    h, about = weight_importance.collect(fit, model, batch, kept)
    # ten classes: exact
    assert about == {"importance": {"images": 16, "draws": 10, "cached": False}}
    wanted, _ = label_free_scores.weight_scores(
        model, batch.x, images=16, draws=10, tolerance=1.0, seed=3
    )
    assert all(torch.equal(h[layer.name], wanted[layer.name]) for layer in model.layers)
    monkeypatch.setattr(label_free_scores, "_output_shape", None)
    again, about = weight_importance.collect(fit, model, batch, kept)
    assert about["importance"]["cached"]
    assert all(torch.equal(again[name], own) for name, own in h.items())
    with pytest.raises(TypeError):  # other images, another entry
        weight_importance.collect(
            grid("grid.range=hmse", "grid.hessian.images=17"), model, batch, kept
        )


def test_sensitivities_price_the_grid_that_layers_get(model, batch):
    fit = grid("grid.range=hmse", "grid.hessian.images=8")
    h, _ = weight_importance.collect(fit, model, batch, NOWHERE)
    problem = Problem(model, batch, None, fit, importance=h)
    layer = model.layers[3]
    own = Sites(problem, "weights", [3]).grid(layer, 3)
    W = geometry.weight(layer.module)
    assert torch.equal(own.scale, fit(W, 3, h[layer.name]).scale)
    assert not torch.equal(own.scale, grid()(W, 3).scale)


def test_every_solver_takes_it(tmp_path):
    done = call(
        tmp_path,
        f"quantizer={','.join(SOLVERS)}",
        "grid.range=hmse",
        "bits=3",
        "seed=0",
        "sensitivity.bits=[3]",
        sweep=True,
    )
    assert done.returncode == 0, done.stderr
    made = {own["choices"]["quantizer"]: own for own in records(tmp_path)}
    assert set(made) == set(SOLVERS)
    assert sorted(own["importance"]["cached"] for own in made.values()) == [False, True, True, True]
    assert all(own["importance"]["images"] == 32 for own in made.values())
    assert all(own["results"]["top1"] > 90 for name, own in made.items() if name != "rtn")
    assert len({own["results"]["codes"] for own in made.values()}) == len(SOLVERS)
    plain = call(tmp_path, "quantizer=rtn", "grid.range=mse", "bits=3", "sensitivity.bits=[3]")
    assert plain.returncode == 0, plain.stderr
    (other,) = (own for own in records(tmp_path) if own["config"]["grid"]["range"] == "mse")
    assert "importance" not in other
    assert other["results"]["codes"] != made["rtn"]["results"]["codes"]


def test_keys_of_other_ranges_are_what_they_were():
    config, _ = compose()
    before = json.loads(json.dumps(config))
    del before["grid"]["hessian"]
    assert record.key(config) == record.key(before)
    assert config["grid"]["hessian"] == renamed_targets.current(migrations.SETTINGS["grid.hessian"])
    other, _ = compose("grid.range=hmse", "grid.hessian.images=32")
    assert len({record.key(own) for own in (config, other, compose("grid.range=hmse")[0])}) == 3
