import copy
import operator

import pytest
import torch
from torch import nn

from sq.errors import SqError
from sq.grid.uniform_grid import per_tensor
from sq.network import residual_adds
from sq.network.residual_adds import Adds


def maps(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


X, Y = maps(2, 3, 4), maps(2, 3, 4, seed=1)
WAYS = {
    "+": lambda x, y: x + y,
    "operator": operator.add,
    "torch": torch.add,
    "torch, named": lambda x, y: torch.add(input=x, other=y),
    "method": lambda x, y: x.add(y),
    "method, named": lambda x, y: x.add(other=y),
    "__add__": lambda x, y: x.__add__(y),
    "sum": lambda x, y: sum([y], start=x),
    "out": lambda x, y: torch.add(x, y, out=torch.empty_like(x)),
}
IN_PLACE = {
    "+=": operator.iadd,
    "add_": lambda x, y: x.add_(y),
    "add_, named": lambda x, y: x.add_(other=y),
    "__iadd__": lambda x, y: x.__iadd__(y),
}


@pytest.mark.parametrize("way", WAYS | IN_PLACE)
def test_every_way_of_adding_is_seen_and_changed(way):
    seen = {}

    def change(name, operand):
        seen[name] = operand.clone()
        return operand.round()

    x, y = X.clone(), Y.clone()
    with Adds(change) as mode:
        found = (WAYS | IN_PLACE)[way](x, y)
    assert mode.number == 1
    assert list(seen) == ["add.0.left", "add.0.right"]
    assert torch.equal(seen["add.0.left"], X)
    assert torch.equal(seen["add.0.right"], Y)
    assert torch.equal(found, X.round() + Y.round())
    assert torch.equal(y, Y)
    if way in IN_PLACE:
        assert found is x
    else:
        assert torch.equal(x, X)


@pytest.mark.parametrize("way", IN_PLACE)
def test_in_place_with_itself(way):
    x = X.clone()
    with Adds(lambda name, operand: operand.round() if name.endswith("left") else operand):
        assert IN_PLACE[way](x, x) is x
    assert torch.equal(x, X.round() + X)


def test_alpha():
    for add in (torch.add, torch.Tensor.add, torch.Tensor.add_):
        with Adds(lambda name, operand: operand.round()):
            found = add(X.clone(), Y, alpha=3)
        assert torch.equal(found, X.round() + 3 * Y.round())


@pytest.mark.parametrize(
    "add",
    [
        lambda: X + 1,
        lambda: 1 + X,
        lambda: X[0] + Y[0],  # two axes
        lambda: X + Y[:1],  # shapes differ
        lambda: X.long() + Y.long(),
        lambda: X + nn.Parameter(Y),
        lambda: X - Y,
        lambda: nn.BatchNorm1d(3)(X),
        lambda: nn.Linear(4, 4)(X),
    ],
)
def test_what_does_not_count(add):
    with Adds(lambda name, operand: pytest.fail("not a residual addition")) as mode:
        add()
    assert mode.number == 0


def test_names():
    assert residual_adds.sides(12) == ["add.12.left", "add.12.right"]
    assert all(residual_adds.is_side(name) for name in residual_adds.sides(0))
    assert not any(
        residual_adds.is_side(name)
        for name in ("add", "add.0", "add.left", "blocks.0.left", "add.x.left", "")
    )


class Blocks(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x, deep=True):
        y = self.one(x) + x
        if deep:
            z = self.two(y)
            z += y
            return z
        return y


def grids(*names):
    return {name: per_tensor(-2.0, 2.0 + i, 3, False) for i, name in enumerate(names)}


def test_attach_changes_the_operands_named_and_detach_restores():
    net = Blocks()
    before = net(X)
    chosen = grids("add.0.right", "add.1.left")
    residual_adds.attach(net, chosen)
    y = net.one(X) + chosen["add.0.right"].nearest(X)
    wanted = chosen["add.1.left"].nearest(net.two(y)) + y
    assert torch.equal(net(X), wanted)
    copied = copy.deepcopy(net)
    with torch.no_grad():
        net.one.weight.zero_()
    assert torch.equal(copied(X), wanted)  # runs its own layers, not those it was copied from
    residual_adds.detach(copied)
    assert torch.equal(copied(X), before)
    assert "forward" not in copied.__dict__


def test_detach_puts_back_a_forward_of_the_network_itself():
    net = Blocks()
    own = net.forward = lambda x: x + x
    residual_adds.attach(net, grids("add.0.left"))
    assert not torch.equal(net(X), 2 * X)
    residual_adds.detach(net)
    assert net.forward is own


def test_an_addition_that_is_not_made_is_an_error():
    net = Blocks()
    residual_adds.attach(net, grids("add.0.left", "add.1.left"))
    with pytest.raises(SqError, match=r"1 additions, without add\.1\.left"):
        net(X, deep=False)
    net(X)


def test_nothing_is_changed_after_an_error():
    net = Blocks()
    residual_adds.attach(net, grids("add.0.left"))
    with pytest.raises(RuntimeError):
        net(maps(2, 3, 5))
    assert torch.equal(X + Y, X.add(Y))
    assert torch.overrides._get_current_function_mode() is None


def test_gradients_pass_through_in_place_additions():
    weight = X.clone().requires_grad_()
    with Adds(lambda name, operand: 2 * operand):
        y = weight * 1
        y += Y
    y.sum().backward()
    assert torch.equal(weight.grad, torch.full_like(X, 2))


class Embedded(nn.Module):
    """Adds an embedding, which to a single image has the shape of its feature map, then two feature maps."""

    def __init__(self):
        super().__init__()
        self.register_buffer("embedding", maps(1, 3, 4, seed=2))

    def forward(self, x):
        y = x + self.embedding
        return y + y.relu()


def test_a_single_image_is_added_as_in_a_batch():
    net = Embedded()
    residual_adds.attach(net, {"add.0.right": per_tensor(0.0, 3.0, 2, False)})
    assert torch.equal(net(X)[:1], net(X[:1]))
    assert not torch.equal(net(X), Embedded()(X))
