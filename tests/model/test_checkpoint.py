"""A constructor by name and a state dict of one's own."""

import pytest
import torch
from cli_helpers import compose
from torchvision import models

from sq.build import build
from sq.errors import SqError


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    torch.manual_seed(0)
    net = models.squeezenet1_1(num_classes=7)
    path = tmp_path_factory.mktemp("weights") / "mine.pth"
    torch.save({"state_dict": net.state_dict()}, path)
    return net, str(path)


def load(path, **knobs):
    part = compose("model=checkpoint", "model.constructor=squeezenet1_1", "+model.arguments.num_classes=7")[0]["model"]
    return build({**part, "weights": path, **knobs}, "model")()


def test_network_and_weights(weights):
    net, path = weights
    model = load(path)
    assert all(torch.equal(t, net.state_dict()[name]) for name, t in model.net.state_dict().items())
    assert model.input == (3, 224, 224)
    assert not model.net.training
    assert len(model.checkpoint) == 64


@pytest.mark.parametrize(
    ("knobs", "says"),
    [
        ({"constructor": "squeezenet1_l"}, r"model\.constructor=squeezenet1_l: .*nearest: .*squeezenet1_1"),
        ({"constructor": "os/system"}, r"model\.constructor=os/system: torchvision \(or timm/\) has none"),
        ({"constructor": "timm/no_such"}, r"model\.constructor=timm/no_such"),
        ({"arguments": {"classes": 7}}, r"model\.arguments=\{'classes': 7\}: squeezenet1_1 does not take them"),
        ({"arguments": {"num_classes": 9}}, r"holds weights of another network than SqueezeNet: .*of another shape"),
        ({"data": {"mean": [0.5] * 3}}, r"model\.data has mean: it must have input_size, interpolation"),
    ],
)
def test_what_does_not_fit_is_named(weights, knobs, says):
    with pytest.raises(SqError, match=says) as caught:
        load(weights[1], **knobs)
    assert "\n" not in str(caught.value)


def test_missing_weights(tmp_path):
    with pytest.raises(SqError, match=r"model\.weights=.*there is no such file"):
        load(str(tmp_path / "none.pth"))
