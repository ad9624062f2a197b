"""Passes that leave out what is known: the same outputs as whole passes, bit by bit, from fewer calls."""

import pytest
import torch
from sensitivity_problems import images, labels, problem, tricky
from torch import nn
from torch.nn import functional as F

from sq.errors import SqError
from sq.network import single_layer_changes
from sq.network.prefix_replay import Replay
from sq.network.rounding_sites import Sites
from sq.network.weight_swap import original_weight


def whole(problem, change):
    with torch.no_grad(), change.applied(problem.model):
        return problem.model.net(problem.batch.x)


@pytest.fixture
def count(monkeypatch):
    calls = []
    plain = F.conv2d
    monkeypatch.setattr(F, "conv2d", lambda *args: calls.append(1) or plain(*args))
    return calls


@pytest.mark.parametrize("kind", ["weights", "inputs"])
def test_outputs_are_those_of_whole_passes(tricky_problem, kind):
    net, x = tricky_problem.model.net, tricky_problem.batch.x
    runs = single_layer_changes.ChangePasses(
        tricky_problem.model,
        single_layer_changes.rounding_changes(Sites(tricky_problem, kind, [2, 4])),
        x,
    )
    assert [layer.name for layer in tricky_problem.model.layers][:2] == ["stem", "again"]
    with torch.no_grad():
        reference = net(x)
    seen = list(runs.each(size=4))
    assert len(seen) == 2 * len(runs.changes)
    for own in seen:
        wanted = whole(tricky_problem, runs.changes[own.change])
        assert torch.equal(own.outputs, wanted[own.positions])
        assert torch.equal(own.reference, reference[own.positions])
        assert not torch.equal(own.outputs, own.reference)


@pytest.fixture
def tricky_problem():
    return problem(tricky(), images(6), labels(6), bits=8)


def test_calls_before_the_layer_are_not_made(tricky_problem, count):
    net, x = tricky_problem.model.net, tricky_problem.batch.x
    replay = Replay(net, tricky_problem.model.layers, x[:1])
    made = {}
    with replay.watching():
        replay.record(x)
        for layer in tricky_problem.model.layers:
            count.clear()
            replay.again(x, layer)
            made[layer.name] = len(count)
    # stem, again, two blocks of one and two calls, again: 9 convolutions. What an in-place function
    # changes is kept.
    assert made == {
        "stem": 9,
        "again": 8,
        "blocks.0.first": 7,
        "blocks.0.second": 6,
        "blocks.1.first": 4,
        "blocks.1.second": 3,
        "head": 0,
    }


def test_network_is_left_as_it_was(tricky_problem):
    net, x = tricky_problem.model.net, tricky_problem.batch.x
    own = net.blocks[0].forward
    net.blocks[0].forward = lambda x: own(x)
    before = [dict(module.__dict__) for module in net.modules()]
    single_layer_changes.measure(
        tricky_problem.model,
        single_layer_changes.rounding_changes(Sites(tricky_problem, "weights", [2])),
        x,
        lambda y, *_: y,
    )
    after = [module.__dict__ for module in net.modules()]
    assert [b.keys() for b in before] == [a.keys() for a in after]
    assert (
        net.blocks[0].__dict__["forward"]
        is before[list(net.modules()).index(net.blocks[0])]["forward"]
    )
    assert not any("forward" in m.__dict__ for m in net.modules() if m is not net.blocks[0])


def test_module_that_shares_the_weight_is_a_user_of_it():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(2, 2, 1), nn.Conv2d(2, 2, 1), nn.ReLU(), nn.Conv2d(2, 2, 1), nn.Flatten()
    )
    net[0].weight = net[3].weight  # found as "0", called before "1"
    made = problem(net.append(nn.Linear(98, 3)), images(4), labels(4))
    runs = single_layer_changes.ChangePasses(
        made.model, single_layer_changes.rounding_changes(Sites(made, "weights", [2])), made.batch.x
    )
    for own in list(runs.each(size=4)):
        change = runs.changes[own.change]
        before = original_weight(change.layer).clone()
        with torch.no_grad():
            change.layer.module.weight.copy_(change.put(before))
            wanted = net(made.batch.x)
            change.layer.module.weight.copy_(before)
        assert torch.equal(own.outputs, wanted)


class Fickle(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.other, self.head = nn.Conv2d(2, 2, 1), nn.Conv2d(2, 2, 1), nn.Linear(98, 3)

    def forward(self, x):
        y = self.one(self.other(x)) if len(x) == 1 else self.other(self.one(x))
        return self.head(y.flatten(1))


def test_order_that_changes_is_refused():
    made = problem(Fickle(), images(4), labels(4))
    changes = single_layer_changes.rounding_changes(Sites(made, "weights", [2]))
    with pytest.raises(SqError, match="Fickle calls its modules in another order"):
        single_layer_changes.measure(made.model, changes, made.batch.x, lambda y, *_: y)
    assert not any("forward" in m.__dict__ for m in made.model.net.modules())


def test_few_images_go_together_where_memory_is_bounded(tricky_problem, monkeypatch):
    changes = single_layer_changes.rounding_changes(Sites(tricky_problem, "weights", [2, 4]))
    x = tricky_problem.batch.x
    once = single_layer_changes.measure(
        tricky_problem.model, changes, x, lambda y, *_: y.double().square().sum(1)
    )
    monkeypatch.setattr(single_layer_changes, "RECORDED_BYTES", 1)
    runs = single_layer_changes.ChangePasses(tricky_problem.model, changes, x)
    assert runs.size == 1
    again = single_layer_changes.measure(
        tricky_problem.model, changes, x, lambda y, *_: y.double().square().sum(1)
    )
    assert again == pytest.approx(once, rel=1e-5)
