import torch
from torch import nn

from sq.network import hooks
from sq.network.partial_forward import input_and_output_of, input_of, inputs_of, outputs_of


class Twice(nn.Module):
    """Calls `layer` twice, then a module that must not be reached by passes that stop before it."""

    def __init__(self):
        super().__init__()
        self.layer = nn.ReLU(inplace=True)
        self.calls = 0
        self.last = nn.Identity()
        self.last.register_forward_hook(self.count)

    def count(self, *_):
        self.calls += 1

    def forward(self, x):
        return self.last(self.layer(self.layer(x) - 1))


X = torch.tensor([[-1.0, 3.0]])


def test_passes_stop_at_the_module_and_copy_what_it_changes_in_place():
    net = Twice()
    assert torch.equal(input_of(net, "layer", X), X)
    given, returned = input_and_output_of(net, "layer", X)
    assert torch.equal(given, X)
    assert torch.equal(returned, X.relu())
    assert net.calls == 0


def test_the_input_before_other_hooks_or_after_them():
    net = Twice()
    with hooks.replacing({"layer": net.layer}, lambda name, module, x: x + 10):
        assert torch.equal(input_of(net, "layer", X), X)
        assert torch.equal(inputs_of(net, "layer", X, 1)[0], X + 10)


def test_all_calls_or_so_many():
    net = Twice()
    second = X.relu() - 1
    for calls in (1, 2, None):
        inputs = inputs_of(net, "layer", X, calls)
        assert all(torch.equal(a, b) for a, b in zip(inputs, (X, second), strict=False))
        assert len(inputs) == (calls or 2)
        assert net.calls == (calls is None)


def test_outputs_are_in_the_order_of_calls():
    outputs = outputs_of(Twice(), ["last", "layer"], X)
    assert [name for name, _ in outputs] == ["layer", "layer", "last"]
    assert torch.equal(outputs[1][1], (X.relu() - 1).relu())
