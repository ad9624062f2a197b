"""Trials on the embedded network: losses against a network put together by hand, and what is kept of them."""

from dataclasses import replace

import pytest
import torch
from cli_helpers import compose
from torch.nn import functional as F

from sq.config.instantiate import build
from sq.dataset import loading
from sq.errors import SqError
from sq.network import geometry, tracing
from sq.storage.store import Store
from sq.trials import front, none, random
from sq.trials.bit_switching import SwitchableNetwork
from sq.trials.measurement import Trial, losses
from sq.types.images import Objects
from sq.types.problem import Problem

WIDTHS = [2, 3, 8]


@pytest.fixture(scope="module")
def parts():
    config = compose(
        "quantizer=rtn", f"sensitivity.bits={WIDTHS}", "calibration.images=32", "threads=1"
    )[0]
    return {
        name: build(config[name], name)
        for name in ("model", "dataset", "calibration", "grid", "sensitivity", "quantizer")
    }


@pytest.fixture(scope="module")
def trial(parts, tmp_path_factory):
    from sq.hessian import layer_statistics

    model, dataset = parts["model"](), parts["dataset"]()
    batch = parts["calibration"](model, dataset, None)
    model = tracing.trace(model, batch.x[:1])
    collected = layer_statistics.collect(model, batch, batch_size=None, positions=1.0, seed=0)
    problem = Problem(
        model, batch, collected, parts["grid"], dict.fromkeys([own.name for own in model.layers], 4)
    )
    store = Store(str(tmp_path_factory.mktemp("store")), 1.0)
    return Trial(
        problem, parts["sensitivity"](problem), parts["quantizer"], dataset.test, None, store
    )


def by_hand(trial, bits, count):
    """Return the loss and accuracy of a network whose layers are rounded one after the other."""
    import copy

    problem = trial.problem
    net = copy.deepcopy(problem.model.net)
    for layer in problem.model.layers:
        W = geometry.weight(layer.module)
        geometry.set_weight(
            net.get_submodule(layer.name), problem.fit(W, bits[layer.name]).nearest(W)
        )
    every = len(trial.images.ids)
    places = torch.linspace(0, every - 1, count).round().long().tolist()
    batch = loading.load(trial.images, places, problem.model.prepare, "test")
    with torch.no_grad():
        outputs = net(batch.x)
    return float(F.cross_entropy(outputs, batch.y)), float(
        (outputs.argmax(1) == batch.y).double().mean() * 100
    )


def test_losses_are_those_of_networks_put_together_by_hand(trial):
    names = [layer.name for layer in trial.problem.model.layers]
    mixes = [
        dict(zip(names, [WIDTHS[(i + k) % 3] for i in range(len(names))], strict=True))
        for k in range(3)
    ]
    found = losses(trial, [(mix, {}) for mix in mixes], 50)
    assert found.images == 50
    for mix, own in zip(mixes, found.assignments, strict=True):
        assert own == pytest.approx(by_hand(trial, mix, 50), rel=1e-5)
    assert found.full[1] > 95


def test_a_mixture_can_go_back(trial):
    mixture = SwitchableNetwork(trial.problem, trial.quantize, trial.cost.weights)
    names = [layer.name for layer in trial.problem.model.layers]
    low, high = dict.fromkeys(names, 2), dict.fromkeys(names, 8)
    x = trial.problem.batch.x[:4]
    with torch.no_grad():
        first = mixture.set(low)(x)
        between = mixture.set(high)(x)
        assert torch.equal(mixture.set(low)(x), first)
    assert not torch.equal(first, between)


def test_settled_layers_can_be_set_to_their_bits_priced_or_not(trial):
    first, *_ = names = [layer.name for layer in trial.problem.model.layers]
    problem = replace(trial.problem, fixed={first: 6}, bits=dict.fromkeys(names, 2) | {first: 6})
    mixture = SwitchableNetwork(problem, trial.quantize, trial.cost.weights)
    assert {bits for row in mixture.weights.values() for bits in row} == {2, 3, 6, 8}
    assert [name for name, row in mixture.weights.items() if 6 in row] == [first]
    W = geometry.weight(problem.model.layers[0].module)
    mixture.set(problem.bits)
    assert torch.equal(
        geometry.weight(mixture.net.get_submodule(first)), problem.fit(W, 6).nearest(W)
    )


def test_random_trials_leave_settled_bits_alone(trial, parts):
    first, *_ = names = [layer.name for layer in trial.problem.model.layers]
    problem = replace(trial.problem, fixed={first: 8, names[-1]: 6})
    settled = replace(trial, problem=problem, cost=parts["sensitivity"](problem))
    found = random.measure(settled, count=12, images=20, seed=0)
    bits = [list(map(int, own["bits"].split())) for own in found["list"]]
    assert {own[0] for own in bits} == {8}
    assert {own[-1] for own in bits} == {6}
    assert {width for own in bits for width in own[1:-1]} == {2, 3, 8}


def test_random_trials_tell_how_well_prices_rank(trial):
    found = random.measure(trial, count=24, images=50, seed=0)
    assert len(found["list"]) == 24
    assert found["spearman"] > 0.5  # errors of outputs say something
    first = found["list"][0]
    names = [layer.name for layer in trial.problem.model.layers]
    bits = dict(zip(names, map(int, first["bits"].split()), strict=True))
    assert first["predicted"] == pytest.approx(trial.cost.of(bits))
    assert first["measured"] == pytest.approx(by_hand(trial, bits, 50)[0], rel=1e-5)
    assert {width for own in found["list"] for width in own["bits"].split()} == {"2", "3", "8"}


def test_runs_that_differ_in_prices_alone_measure_once(trial):
    again = random.measure(trial, count=24, images=50, seed=0)
    other = replace(
        trial,
        cost=replace(
            trial.cost,
            weights={n: {b: -c for b, c in row.items()} for n, row in trial.cost.weights.items()},
        ),
    )
    turned = random.measure(other, count=24, images=50, seed=0)
    assert turned["cached"]
    assert [own["measured"] for own in turned["list"]] == [own["measured"] for own in again["list"]]
    assert turned["spearman"] == pytest.approx(-again["spearman"])
    assert not random.measure(trial, count=5, images=50, seed=1)["cached"]
    fewer = replace(trial.problem, batch=replace(trial.problem.batch, x=trial.problem.batch.x[:5]))
    # rtn looks at none
    assert random.measure(replace(trial, problem=fewer), count=24, images=50, seed=0)["cached"]


def test_other_weights_are_measured_anew(trial):
    mixes = [(dict.fromkeys(trial.cost.weights, 8), {})]
    first = losses(trial, mixes, 50)
    assert losses(trial, mixes, 50).cached
    assert not losses(trial, mixes, 49).cached

    def coarser(W, bits):
        return trial.problem.fit(W, 2)

    other = losses(replace(trial, problem=replace(trial.problem, fit=coarser)), mixes, 50)
    assert not other.cached
    assert other.full == first.full
    assert other.assignments != first.assignments


def test_the_front_is_measured_in_its_order(trial, parts):
    names = [layer.name for layer in trial.problem.model.layers]
    points = [
        {"bits": b, "cost": 1 / b, "widths": dict.fromkeys(names, b), "inputs": {}} for b in (8, 2)
    ]
    found = front.measure(replace(trial, front=points), images=50)
    assert [point["bits"] for point in found["front"]] == [8, 2]
    for point in found["front"]:
        assert (point["loss"], point["top1"]) == pytest.approx(
            by_hand(trial, dict.fromkeys(names, point["bits"]), 50), rel=1e-5
        )


def test_no_front_is_refused(trial):
    with pytest.raises(SqError, match="allocation=pareto"):
        front.measure(trial, images=50)


def test_detectors_are_refused(trial):
    objects = [Objects(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0), (8, 8))]
    with pytest.raises(SqError, match="trials=none"):
        random.measure(
            replace(trial, images=replace(trial.images, y=objects)), count=2, images=2, seed=0
        )


def test_quantized_inputs_are_refused(trial):
    batch = replace(trial.problem.batch, inputs="quantized")
    with pytest.raises(SqError, match=r"calibration\.inputs=reference"):
        losses(replace(trial, problem=replace(trial.problem, batch=batch)), [({}, {})], 5)


def test_none_measures_nothing(trial):
    assert none.measure(trial) == {}
