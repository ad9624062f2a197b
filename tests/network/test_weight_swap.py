import pytest
import torch
from sensitivity_problems import images, labels, problem, tricky

from sq.network.weight_swap import swapped_weights


@pytest.fixture
def own():
    return problem(tricky(), images(4), labels(4), bits=8)


def test_swapped_weights_are_used_and_restored(own):
    net, x = own.model.net, own.batch.x
    before = net.stem.weight
    with torch.no_grad():
        plain = net(x)
        with swapped_weights(own.model, {"stem": torch.zeros_like(before)}):
            outer = net(x)
            with swapped_weights(own.model, {"stem": before.detach(), "head": torch.ones(3, 4)}):
                inner = net(x)
            assert torch.equal(net(x), outer)
        assert torch.equal(net(x), plain)
    assert not torch.equal(outer, plain)
    assert not torch.equal(inner, plain)
    assert net.stem.weight is before
    assert "weight" not in net.stem.__dict__
