"""timm networks: weights by tag or by file, and the transform that goes with them."""

import copy
import hashlib
import json
import logging
import pickle
from pathlib import Path

import pytest
import timm
import torch
from cli_helpers import CONF, compose
from omegaconf import OmegaConf
from PIL import Image
from safetensors.torch import save_file
from timm.data import create_transform, resolve_data_config
from torchvision.transforms.functional import normalize, to_tensor

from sq.config.instantiate import build
from sq.dataset import loading
from sq.errors import SqError
from sq.model import timm as module
from sq.model.transforms import Normalise

SMALL = "test_resnet.r160_in1k"


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    return timm.create_model(SMALL, pretrained=False).eval()


@pytest.fixture(scope="module")
def file(net, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "net.safetensors"
    save_file(net.state_dict(), path)
    return str(path)


def load(file, name=SMALL, data=None, reparameterize=True):
    return module.load(
        name=name,
        weights=file,
        reparameterize=reparameterize,
        data=data,
        expected={"x": {"top1": 1.0, "within": 0.1}},
    )


def noise(width, height):
    pixels = torch.randint(
        0,
        256,
        (height, width, 3),
        generator=torch.Generator().manual_seed(width),
        dtype=torch.uint8,
    )
    return Image.fromarray(pixels.numpy())


def test_weights_are_those_of_the_file(net, file):
    model = load(file)
    assert all(torch.equal(t, net.state_dict()[name]) for name, t in model.net.state_dict().items())
    assert not model.net.training
    assert model.input == tuple(resolve_data_config({}, model=net)["input_size"])
    assert model.expected == {"x": {"top1": 1.0, "within": 0.1}}
    assert len(model.layers) > 5


@pytest.mark.parametrize("size", [(300, 200), (97, 301), (160, 160), (20, 30)])
def test_transform_is_the_librarys(net, file, size):
    image = noise(*size)
    wanted = create_transform(**resolve_data_config({}, model=net), is_training=False)(image)
    assert torch.equal(load(file).prepare(image, False), wanted)


def test_settings_of_the_transform_can_be_given(file):
    data = {"mean": [0.1, 0.2, 0.3], "std": [1.0, 2.0, 4.0], "input_size": [3, 32, 32]}
    model = load(file, data=data)
    assert model.input == (3, 32, 32)
    image = noise(33, 35)
    wanted = normalize(to_tensor(image.crop((0, 1, 32, 33))), [0.1, 0.2, 0.3], [1.0, 2.0, 4.0])
    assert torch.equal(model.prepare(image, True), wanted), (
        "resized already: cropped only, offsets rounded down"
    )
    with pytest.raises(
        SqError, match=r"model\.data\.men: not a setting of the transform; choices: .*mean"
    ):
        load(file, data={"men": [0.5] * 3})


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ({"input_size": 224}, r"input_size=224: should be a valid list"),
        ({"input_size": [224, 224]}, r"input_size=\[224, 224\]: "),
        ({"input_size": [1, 32, 32]}, r"input_size=\[1, 32, 32\]: .*3 channels"),
        (
            {"input_size": [3, 0, 32]},
            r"input_size=\[3, 0, 32\]: should be greater than or equal to 1",
        ),
        ({"interpolation": "bilinaer"}, r"interpolation=bilinaer: .*nearest: bilinear"),
        ({"crop_pct": 0.0}, r"crop_pct=0\.0: should be greater than 0"),
        ({"crop_pct": 87.5}, r"crop_pct=87\.5: should be less than or equal to 1"),
        ({"crop_mode": "centre"}, r"crop_mode=centre: .*nearest: center"),
        ({"mean": 0.5}, r"mean=0\.5: should be a valid list"),
        ({"mean": ["a", 0.5, 0.5]}, r"mean=\['a', 0\.5, 0\.5\]: should be a valid number"),
        ({"std": [0.2, 0.2]}, r"std=\[0\.2, 0\.2\]: "),
        ({"std": [0.2, 0.0, 0.2]}, r"std=\[0\.2, 0\.0, 0\.2\]: should be greater than 0"),
    ],
)
def test_setting_that_makes_no_sense(file, data, says):
    with pytest.raises(SqError, match=r"^model\.data\." + says) as caught:
        load(file, data=data)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "data",
    [{"crop_mode": "squash"}, {"crop_mode": "border", "crop_pct": 1}, {"interpolation": "nearest"}],
)
def test_settings_reach_the_librarys_transform(net, file, data):
    image, settings = noise(97, 301), resolve_data_config({}, model=net)
    wanted = create_transform(**{**settings, **data}, is_training=False)(image)
    assert torch.equal(load(file, data=data).prepare(image, False), wanted)
    assert not torch.equal(load(file).prepare(image, False), wanted)


def test_crop_larger_than_the_image(file):
    with pytest.raises(
        SqError,
        match=r"the image is 31x40, the network takes 32x32 of it: set dataset\.resized=false",
    ):
        load(file, data={"input_size": [3, 32, 32]}).prepare(noise(31, 40), True)


@pytest.mark.parametrize("mode", ["L", "RGBA"])
def test_image_that_is_not_rgb(file, mode):
    for prepare in (load(file).prepare, Normalise((8, 8), (0.0,) * 3, (1.0,) * 3)):
        with pytest.raises(SqError, match=rf"the image is .*{mode}"):
            prepare(noise(8, 8).convert(mode), False)


def test_transforms_go_to_other_processes(file):
    image = noise(70, 50)
    prepare = load(file).prepare
    assert torch.equal(pickle.loads(pickle.dumps(prepare))(image, False), prepare(image, False))


@pytest.mark.parametrize(
    ("name", "weights", "says"),
    [
        (
            "resnet5o.tv_in1k",
            None,
            r"model\.name=resnet5o\.tv_in1k: timm has no such network; nearest: .*resnet50",
        ),
        ("resnet50.v1", None, r"resnet50 has no weights of that tag; tags: .*tv_in1k"),
        ("resnet50", None, r"name its weights too, resnet50\.TAG; tags: .*a1_in1k"),
    ],
)
def test_name_that_does_not_name_weights(name, weights, says):
    with pytest.raises(SqError, match=says):
        module.load(name=name, weights=weights, reparameterize=True, data=None, expected=None)


def test_weights_of_a_network_without_a_tag(file, monkeypatch, tmp_path):
    monkeypatch.setenv("SQ_DATA", str(Path(file).parent.parent))
    monkeypatch.chdir(tmp_path)
    model = load(str(Path(file).relative_to(Path(file).parent.parent)), name="test_resnet")
    assert model.checkpoint == hashlib.sha256(Path(file).read_bytes()).hexdigest()


def test_weights_from_the_hub(net, file, monkeypatch):
    def create(name, pretrained):
        assert (name, pretrained) == (SMALL, True)
        return copy.deepcopy(net).half().train()

    monkeypatch.setattr(timm, "create_model", create)
    model = load(None, data={"mean": [0.5, 0.5, 0.25]})
    assert not model.net.training
    assert {t.dtype for t in model.net.parameters()} == {torch.float32}
    assert len(model.checkpoint) == 16
    assert int(model.checkpoint, 16)
    black = model.prepare(Image.new("RGB", (200, 200)), False)
    wanted = torch.tensor([0.5, 0.5, 0.25]) / -torch.tensor(
        resolve_data_config({}, model=net)["std"]
    )
    torch.testing.assert_close(black.mean((1, 2)), wanted)
    with torch.no_grad():
        net.fc.bias[0] += 1
        other = load(None).checkpoint
        net.fc.bias[0] -= 1
    assert other != model.checkpoint, "the checkpoint's name follows its tensors"


def test_weights_of_another_network(file):
    with pytest.raises(
        SqError, match=r"holds weights of another network than ResNet: \d+ missing \(.*, \.\.\.\)"
    ):
        load(file, name="resnet18.tv_in1k")


def test_attempts_of_the_hub_are_not_told(monkeypatch, caplog):
    def unreachable(*_, **__):
        logging.getLogger("huggingface_hub.utils._http").warning("Retrying in 1s [Retry 1/5].")
        try:
            raise OSError(-2, "Name or service not known")
        except OSError as error:
            raise LookupError("cannot find the requested files in the local cache") from error

    monkeypatch.setattr(timm, "create_model", unreachable)
    with pytest.raises(
        SqError, match=r"timm's hub \(OSError: \[Errno -2\] Name or service not known\): go online"
    ):
        load(None, name="resnet50.tv_in1k")
    assert caplog.records == []
    logging.getLogger("huggingface_hub.utils._http").warning("as before")
    assert len(caplog.records) == 1


def test_hub_that_cannot_be_reached(monkeypatch):
    def offline(name, pretrained):
        raise OSError("no route\nto host")

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(SqError) as caught:
        module.load(
            name="resnet50.tv_in1k", weights=None, reparameterize=True, data=None, expected=None
        )
    text = str(caught.value)
    assert text.startswith(
        "model.name=resnet50.tv_in1k: its weights cannot be had from timm's hub (OSError: no route to"
    )
    assert "model.weights=PATH" in text
    assert "\n" not in text


def configs():
    found = [
        (f.stem, OmegaConf.to_container(OmegaConf.load(f)))
        for f in sorted((CONF / "model").glob("*.yaml"))
    ]
    return [(name, part) for name, part in found if part["_target_"] == "sq.model.timm.load"]


@pytest.mark.parametrize(
    ("choice", "part"), configs(), ids=lambda own: own if isinstance(own, str) else ""
)
def test_choice_names_weights_that_timm_knows(choice, part):
    assert part["name"] in timm.list_pretrained(), choice
    for known in part["expected"].values():
        assert set(known) == {"top1", "within"}


def test_efficientnet_knows_real_images(needs_data):
    config = compose("model=efficientnet_lite0", "dataset=imagenet_sample")[0]
    model, data = (build(config[family], family)() for family in ("model", "dataset"))
    assert model.skipped == []
    assert len(model.layers) == 50
    batch = loading.load(data.test, range(0, 1300, 163), model.prepare, "images")
    with torch.no_grad():
        right = (model.net(batch.x).argmax(1) == batch.y).sum()
    assert right >= 6, json.dumps(batch.ids)


def test_network_with_branches_is_fused_first_unless_told_not_to(tmp_path, capsys):
    torch.manual_seed(0)
    name = "repghostnet_050.in1k"
    net = timm.create_model("repghostnet_050", pretrained=False).eval()
    save_file(net.state_dict(), tmp_path / "net.safetensors")
    fused = load(str(tmp_path / "net.safetensors"), name, {"input_size": [3, 64, 64]})
    assert "reparameterized: 32 modules fused as RepGhostNet offers it" in capsys.readouterr().err
    left = load(
        str(tmp_path / "net.safetensors"), name, {"input_size": [3, 64, 64]}, reparameterize=False
    )
    assert capsys.readouterr().err == ""
    assert fused.checkpoint == left.checkpoint
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        wanted = net(x)
        assert torch.equal(left.net(x), wanted)
        torch.testing.assert_close(fused.net(x), wanted, rtol=1e-4, atol=1e-5)
    norms = [
        sum(isinstance(m, torch.nn.BatchNorm2d) for m in model.net.modules())
        for model in (fused, left)
    ]
    assert norms[0] < norms[1]
