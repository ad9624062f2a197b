"""Networks with branches, fused as they offer it, and only where that leaves the outputs as they were."""

import pytest
import torch
from tolerances import assert_near, of_layers
from torch import nn

import sq
from sq.errors import SqError
from sq.network import geometry, reparameterize


class Branches(nn.Module):
    """The sum of two linear layers, fused in place."""

    def __init__(self, error=0.0):
        super().__init__()
        self.error = error
        self.left, self.right = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        return self.left(x) + (self.right(x) if self.right is not None else 0)

    def switch_to_deploy(self):
        with torch.no_grad():
            self.left.weight += self.right.weight * (1 - self.error)
            self.left.bias += self.right.bias
        self.right = None


class Returning(Branches):
    """The same, fused into a new module."""

    def fuse(self):
        self.switch_to_deploy()
        return self.left


class Helper(nn.Module):
    """Has a module and a method of such names that fuse nothing."""

    def __init__(self):
        super().__init__()
        self.fuse = nn.Linear(4, 4)

    def reparameterize(self, x):
        return x

    def forward(self, x):
        return self.reparameterize(self.fuse(x))


def test_branches_become_one_layer(capsys):
    torch.manual_seed(0)
    net = nn.Sequential(Branches(), nn.Sequential(Returning(), Helper())).eval()
    x = torch.randn(3, 4)
    wanted = net(x)
    assert reparameterize.fusible(net) == ["0", "1.0"]
    fused = reparameterize.apply(net, x, "off=true")
    assert_near(fused(x), wanted, of_layers(net, x.dtype))
    assert [layer.name for layer in geometry.find(fused)[0]] == ["0.left", "1.0", "1.1.fuse"]
    assert torch.equal(net(x), wanted)
    assert len(geometry.find(net)[0]) == 5
    said = capsys.readouterr().err
    assert (
        said
        == "reparameterized: 2 modules fused as Sequential offers it (0, 1.0); not with off=true\n"
    )


class Thrice(nn.Module):
    """Uses one block three times: under two names, and in another module."""

    def __init__(self, kind):
        super().__init__()
        self.first = self.second = kind()
        self.inner = nn.Sequential(nn.ReLU(), self.first)

    def forward(self, x):
        return self.inner(self.second(self.first(x)))


@pytest.mark.parametrize("kind", [Branches, Returning])
def test_block_that_is_used_several_times_is_fused_once_everywhere(kind):
    torch.manual_seed(0)
    net, x = Thrice(kind).eval(), torch.randn(3, 4)
    wanted = net(x)
    fused = reparameterize.apply(net, x, "off=true")
    torch.testing.assert_close(fused(x), wanted, rtol=1e-4, atol=1e-5)
    assert fused.first is fused.second
    assert fused.first is fused.inner[1]
    assert len(geometry.find(fused)[0]) == 1
    assert len(geometry.find(net)[0]) == 2
    assert torch.equal(net(x), wanted)


def test_network_that_keeps_what_it_computed_is_fused():
    class Keeping(Branches):
        def forward(self, x):
            self.last = super().forward(x)
            return self.last

    torch.manual_seed(0)
    net, x = nn.Sequential(Keeping()).eval(), torch.randn(3, 4)
    wanted = net(x)
    assert net[0].last.grad_fn is not None  # which copy.deepcopy refuses
    fused = reparameterize.apply(net, x, "off=true")
    torch.testing.assert_close(fused(x), wanted, rtol=1e-4, atol=1e-5)


def test_network_that_offers_nothing_is_returned():
    net = nn.Sequential(Helper()).eval()
    assert reparameterize.apply(net, torch.randn(1, 4), "off=true") is net


def test_fusing_that_changes_the_outputs_is_refused():
    torch.manual_seed(0)
    with pytest.raises(
        SqError, match=r"^fusing 0 as Sequential offers it changes the outputs .*: set off=true$"
    ):
        reparameterize.apply(
            nn.Sequential(Branches(error=0.1)).eval(), torch.randn(3, 4), "off=true"
        )


def test_fusing_that_fails_is_refused():
    class Failing(Branches):
        def switch_to_deploy(self):
            raise AttributeError("no such branch")

    with pytest.raises(
        SqError,
        match=r"^Sequential offers to fuse 0, and fails at it \(.*no such branch\): set off=true$",
    ):
        reparameterize.apply(nn.Sequential(Failing()).eval(), torch.randn(3, 4), "off=true")


def test_quantize_fuses_first():
    torch.manual_seed(0)
    net, x = nn.Sequential(Branches(), nn.ReLU(), nn.Linear(4, 2)).eval(), torch.randn(16, 4)
    fused = sq.quantize(net, x, quantizer="rtn", bits=8)
    assert fused[0].right is None
    assert sq.quantize(net, x, quantizer="rtn", bits=8, reparameterize=False)[0].right is not None
    with torch.no_grad():
        assert float((fused(x) - net(x)).norm() / net(x).norm()) < 0.02
