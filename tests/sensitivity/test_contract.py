"""What every sensitivity must hold to, as its YAML has it."""

from dataclasses import replace

import grids
import pytest
import torch
from cli_helpers import CONF, compose
from sensitivity_problems import images, labels, problem, tricky

from sq.config.instantiate import build
from sq.errors import SqError
from sq.hessian import layer_statistics
from sq.network import geometry, tracing
from sq.types.images import Calibration, Objects
from sq.types.problem import Model, Problem

EVERY = sorted(file.stem for file in (CONF / "sensitivity").glob("*.yaml"))
OF_WEIGHTS = {"weight_mse", "mask_kl"}
LABELLED = {"measured", "trace", "fisher", "grad_l1", "noise"}
CHEAP = {"draws": 2, "images": 8, "together": 4}


def metric(name, **changes):
    part = compose(f"sensitivity={name}")[0]["sensitivity"]
    return build({k: (CHEAP | changes).get(k, v) for k, v in part.items()}, "sensitivity")


def both(name):
    return {"bits": [2, 4], "input_bits": [] if name in OF_WEIGHTS else [3, 6]}


@pytest.fixture
def own():
    return problem(tricky(), images(8), labels(8), bits=8)


@pytest.mark.parametrize("name", EVERY)
def test_every_layer_is_priced_at_every_width_and_the_network_is_left_as_it_was(own, name):
    net = own.model.net
    for place, parameter in enumerate(net.parameters()):
        parameter.requires_grad_(place % 2 == 0)
    before = {n: (t, t.clone(), t.requires_grad) for n, t in net.state_dict(keep_vars=True).items()}
    inside = [dict(module.__dict__) for module in net.modules()]
    cost = metric(name, **both(name))(own)
    cost.check()
    names = [layer.name for layer in own.model.layers]
    assert list(cost.weights) == names
    assert all(list(row) == [2, 4] for row in cost.weights.values())
    assert list(cost.inputs) == ([] if name in OF_WEIGHTS else names)
    assert all(list(row) == [3, 6] for row in cost.inputs.values())
    # which may mask the same
    assert all(row[2] != row[4] for row in cost.weights.values()) or name == "mask_kl"
    assert cost.unit
    assert set(cost.errors) <= set(names)
    assert net.state_dict(keep_vars=True).keys() == before.keys()
    for key, tensor in net.state_dict(keep_vars=True).items():
        assert tensor is before[key][0]
        assert torch.equal(tensor, before[key][1])
        assert tensor.requires_grad == before[key][2]
        assert tensor.grad is None
    for module, then in zip(net.modules(), inside, strict=True):
        assert module.__dict__.keys() == then.keys()
        assert not module._forward_pre_hooks
        assert not module._forward_hooks


@pytest.mark.parametrize("name", EVERY)
def test_levels_of_any_table_are_priced(own, name):
    cost = metric(name, bits=[3, 4], input_bits=[])(replace(own, fit=grids.fit("post", grow=1.0)))
    cost.check()
    uniform = metric(name, bits=[3, 4], input_bits=[])(own)
    for layer, row in cost.weights.items():
        assert row != uniform.weights[layer]
        assert row[3] != row[4] or name == "mask_kl"


@pytest.mark.parametrize("name", EVERY)
def test_settled_layers_are_priced_at_their_bits_alone_and_change_no_other_price(own, name):
    free = metric(name, **both(name))(own)
    cost = metric(name, **both(name))(replace(own, fixed={"stem": 8, "head": 8}))
    for before, after in ((free.weights, cost.weights), (free.inputs, cost.inputs)):
        assert after.keys() == before.keys()
        for layer, row in after.items():
            assert list(row) == [8] if layer in ("stem", "head") else row == before[layer]
    assert name in OF_WEIGHTS or list(cost.inputs["head"]) == [8]


@pytest.mark.parametrize("name", EVERY)
def test_it_is_deterministic_and_asked_for_a_gradient_or_not(own, name):
    first = metric(name, **both(name))(own)
    torch.rand(1)  # the global generator is none of its sources
    with torch.no_grad():
        second = metric(name, **both(name))(own)
    assert (first.weights, first.inputs, first.errors) == (
        second.weights,
        second.inputs,
        second.errors,
    )


@pytest.mark.parametrize("name", sorted(LABELLED))
def test_labels_are_asked_for(own, name):
    unlabelled = replace(own, batch=replace(own.batch, y=torch.full((8,), -1)))
    with pytest.raises(SqError, match=rf"sensitivity={name} needs labels.*label_free"):
        metric(name)(unlabelled)
    objects = [Objects(torch.zeros(0, 4), torch.zeros(0).long(), torch.zeros(0).bool(), (7, 7))] * 8
    with pytest.raises(SqError, match=rf"sensitivity={name} needs one class an image"):
        metric(name)(replace(own, batch=replace(own.batch, y=objects)))


@pytest.mark.parametrize("name", sorted(set(EVERY) - LABELLED))
def test_labels_are_not_looked_at(own, name):
    unlabelled = replace(own, batch=replace(own.batch, y=torch.full((8,), -1)))
    assert metric(name)(unlabelled).weights == metric(name)(own).weights


@pytest.mark.parametrize("name", EVERY)
def test_inputs_in_full_precision_have_no_price(name):
    bare = problem(tricky(), images(8), labels(8))
    with pytest.raises(
        SqError, match="weights alone" if name in OF_WEIGHTS else "set activation=mse"
    ):
        metric(name, input_bits=[4])(bare)
    assert metric(name)(bare).inputs == {}


@pytest.fixture(scope="module")
def digits_problem(resnet, digits_train, fit):
    found, _ = geometry.find(resnet.net)
    some = slice(0, 32)
    batch = Calibration(digits_train.x[some], digits_train.y[some], digits_train.ids[some])
    model = tracing.trace(replace(resnet, layers=found), batch.x[:1])
    return Problem(
        model,
        batch,
        layer_statistics.collect(model, batch, batch_size=None, positions=1.0, seed=0),
        fit,
    )


@pytest.mark.one_arithmetic(
    "the order of whole networks: costs of layers are compared with oracles"
)
@pytest.mark.parametrize("name", EVERY)
def test_more_bits_cost_less_on_a_trained_network(digits_problem, name):
    """Estimates with a sign, and those at a gradient that is all but noise, may say otherwise here and there."""
    cost = metric(name, bits=[2, 4, 8], images=32, draws=4)(digits_problem)
    rows = cost.weights.values()
    falling = [abs(row[2]) > abs(row[4]) > abs(row[8]) for row in rows]
    assert sum(falling) >= 0.6 * len(falling)
    assert sum(abs(row[2]) for row in rows) > 3 * sum(abs(row[8]) for row in rows)
    exact = {"weight_mse", "output_error", "fisher", "grad_l1", "label_free"}
    assert name not in exact or cost.unruly() == []
    assert isinstance(digits_problem.model, Model)


class Attention(torch.nn.Module):
    """A transformer's block on 49 pixels: PyTorch's fused attention has neither second derivatives nor forward mode."""

    def __init__(self):
        super().__init__()
        self.embed, self.qkv = torch.nn.Linear(2, 8), torch.nn.Linear(8, 24)
        self.norm, self.head = torch.nn.LayerNorm(8), torch.nn.Linear(8, 3)

    def forward(self, x):
        y = self.embed(x.flatten(2).mT)
        q, k, v = self.qkv(self.norm(y)).unflatten(2, (3, 2, 4)).permute(2, 0, 3, 1, 4)
        mixed = torch.nn.functional.scaled_dot_product_attention(q, k, v)
        return self.head((y + mixed.transpose(1, 2).flatten(2)).mean(1))


@pytest.mark.parametrize("name", EVERY)
def test_transformers_are_priced(name):
    torch.manual_seed(0)
    own = problem(Attention().eval(), images(8), labels(8), bits=8)
    for variant in ("share", "pairs") if name == "interaction" else ("",):
        cost = metric(name, variant=variant, **both(name))(own)
        cost.check()
        assert list(cost.weights) == ["embed", "qkv", "head"]
        assert all(row[2] != row[4] for row in cost.weights.values())
