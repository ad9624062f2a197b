"""A constructor by name and a state dict of one's own."""

import pytest
import timm
import torch
from cli_helpers import compose
from PIL import Image
from torchvision import models

from sq.config.instantiate import build
from sq.errors import SqError

DATA = {
    "input_size": [3, 8, 8],
    "interpolation": "bilinear",
    "crop_pct": 1.0,
    "mean": [0.0, 0.0, 0.0],
    "std": [1.0, 1.0, 1.0],
}


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    torch.manual_seed(0)
    net = models.squeezenet1_1(num_classes=7)
    path = tmp_path_factory.mktemp("weights") / "mine.pth"
    torch.save({"state_dict": net.state_dict()}, path)
    return net, str(path)


def load(path, **knobs):
    part = compose(
        "model=checkpoint", "model.constructor=squeezenet1_1", "model.arguments.num_classes=7"
    )[0]["model"]
    return build({**part, "weights": path, **knobs}, "model")()


def test_network_and_weights(weights):
    net, path = weights
    model = load(path)
    assert all(torch.equal(t, net.state_dict()[name]) for name, t in model.net.state_dict().items())
    assert model.input == (3, 224, 224)
    assert not model.net.training
    assert len(model.checkpoint) == 64


def test_constructor_of_timm(tmp_path):
    net = timm.create_model("test_resnet", num_classes=5).eval()
    torch.save({f"module.{name}": t for name, t in net.state_dict().items()}, tmp_path / "mine.pt")
    model = load(
        str(tmp_path / "mine.pt"), constructor="timm/test_resnet", arguments={"num_classes": 5}
    )
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(model.net(x), net(x))
    assert model.skipped == []


def test_transform_by_hand(weights):
    data = {"input_size": [3, 8, 12], "interpolation": "nearest", "crop_pct": 1.0}
    data |= {"mean": [0.0, 0.5, 0.0], "std": [1.0, 1.0, 0.5]}
    model = load(weights[1], data=data)
    assert model.input == (3, 8, 12)
    image = Image.new("RGB", (12, 8), (255, 0, 51))
    for resized in (False, True):
        found = model.prepare(image, resized)
        torch.testing.assert_close(
            found, torch.tensor([1.0, -0.5, 0.4]).view(3, 1, 1).expand(3, 8, 12)
        )


def test_expected_figures_go_with_the_model(weights):
    known = {"mine": {"top1": 50.0, "within": 1.0}}
    assert load(weights[1], expected=known).expected == known
    assert load(weights[1], expected=None).expected == {}


def test_weights_that_are_not_finite(weights, tmp_path):
    broken = {name: t.clone() for name, t in weights[0].state_dict().items()}
    broken["features.0.weight"][0, 0, 0, 0] = float("nan")
    torch.save(broken, tmp_path / "mine.pth")
    with pytest.raises(SqError, match=r"mine\.pth holds NaN or infinity in features\.0\.weight"):
        load(str(tmp_path / "mine.pth"))


@pytest.mark.parametrize(
    ("knobs", "says"),
    [
        (
            {"constructor": "squeezenet1_l"},
            r"model\.constructor=squeezenet1_l: .*nearest: .*squeezenet1_1",
        ),
        (
            {"constructor": "os/system"},
            r"model\.constructor=os/system: torchvision \(or timm/\) has none",
        ),
        ({"constructor": "timm/no_such"}, r"model\.constructor=timm/no_such"),
        (
            {"arguments": {"classes": 7}},
            r"model\.arguments=\{'classes': 7\}: squeezenet1_1 does not take them",
        ),
        (
            {"arguments": {"num_classes": 9}},
            r"holds weights of another network than SqueezeNet: .*of another shape",
        ),
        (
            {"arguments": {"num_classes": "many"}},
            r"model\.arguments=.*squeezenet1_1 does not take them \(TypeError",
        ),
        (
            {"data": DATA | {"crop_pct": 2.0}},
            r"model\.data\.crop_pct=2\.0: should be less than or equal to 1",
        ),
        (
            {"data": DATA | {"crop_mode": "sqush"}},
            r"model\.data\.crop_mode=sqush: .*nearest: squash",
        ),
        ({"data": DATA | {"crop": 1.0}}, r"model\.data\.crop: not a setting of the transform"),
        (
            {"data": {"mean": [0.5] * 3}},
            r"model\.data has mean: it lacks input_size, interpolation, crop_pct, std",
        ),
    ],
)
def test_what_does_not_fit_is_named(weights, knobs, says):
    with pytest.raises(SqError, match=says) as caught:
        load(weights[1], **knobs)
    assert "\n" not in str(caught.value)


def test_missing_weights(tmp_path):
    with pytest.raises(SqError, match=r"model\.weights=.*there is no such file"):
        load(str(tmp_path / "none.pth"))
