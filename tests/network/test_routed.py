"""Routed networks: each image goes to one of several experts, so that no image calls all layers."""

import copy
import inspect
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from cli_helpers import records, run
from PIL import Image
from safetensors.torch import save_file
from tolerances import assert_within, of_gram, of_layers
from torch import nn
from torch.nn import functional as F

import sq
from sq.correction import layer_by_layer
from sq.correction.bias import Bias
from sq.errors import SqError
from sq.hessian import layer_statistics
from sq.network import batchnorm_folding, geometry, tracing
from sq.types.problem import Model

EXPERTS = 3


class Routed(nn.Module):
    """Sends images to experts by brightness; `empty` calls those that get none with an empty batch."""

    def __init__(self, empty):
        super().__init__()
        torch.manual_seed(0)
        self.empty = empty
        self.head = nn.Linear(6, 5)
        self.spare = nn.Linear(3, 3)
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6)) for _ in range(EXPERTS)
        )

    def forward(self, x):
        y, chosen = self.stem(x), expert(x)
        out = torch.zeros_like(y)
        for number, own in enumerate(self.experts):
            if self.empty or (chosen == number).any():
                out[chosen == number] = own(y[chosen == number])
        return self.head(F.relu(out).mean((2, 3)))


def expert(x):
    level = x.mean((1, 2, 3))
    return (level > -0.5).long() + (level > 0.5).long()


def images():
    """Return 12 images; the first goes to the first expert alone."""
    x = torch.randn(12, 3, 6, 6, generator=torch.Generator().manual_seed(1)) / 4
    return x + torch.tensor([-1, 0, 1, 0, 1, 1, -1, 0, 0, 1, 1, 0.0]).view(-1, 1, 1, 1)


EMPTY = pytest.mark.parametrize("empty", [False, True])


def settled(net, x):
    found, skipped = geometry.find(net)
    return tracing.trace(Model(net, found, tuple(x.shape[1:]), "", None, skipped), x)


@EMPTY
def test_layers_are_found_with_all_images_in_the_order_of_calls(empty, capsys):
    net, x = Routed(empty).eval(), images()
    model = settled(net, x)
    order = ["stem", "experts.0.0", "experts.1.0", "experts.2.0", "head"]
    assert [layer.name for layer in model.layers] == order
    assert model.skipped == ["spare (never called)"]
    assert model.ends == ("stem", "head")
    # of those the first image does not call: the mean over images
    share = [36, 36, 36 * 5 / 12, 36 * 5 / 12, 1]
    assert [layer.positions for layer in model.layers] == share
    assert (
        "not called by the first image: 3 layers (spare, experts.1.0, experts.2.0), looked"
        in capsys.readouterr().err
    )
    assert [layer.fed for layer in model.layers] == order


def test_networks_whose_first_image_calls_all_take_one_pass(capsys):
    passes = []
    net = nn.Sequential(nn.Conv2d(3, 2, 3), nn.Flatten(), nn.Linear(32, 2))
    net.register_forward_hook(lambda module, args, y: passes.append(len(y)))
    settled(net, images())
    assert passes == [1]
    assert not capsys.readouterr().err


@EMPTY
@pytest.mark.parametrize("size", [1, 5, None])
def test_statistics_are_of_the_images_that_a_layer_sees(empty, size):
    net, x = Routed(empty).eval(), images()
    model = settled(net, x)
    batch = SimpleNamespace(x=x, ids=[str(i) for i in range(len(x))])
    found = layer_statistics.collect(model, batch, batch_size=size, positions=1.0, seed=0)
    for number in range(EXPERTS):
        own = found.layers[f"experts.{number}.0"]
        with torch.no_grad():
            fed = net.stem(x[expert(x) == number]).double()
        X = F.unfold(fed, 3, padding=1).movedim(1, 0).flatten(1)
        assert own.positions == X.shape[1]
        wanted = 2 * X @ X.T / X.shape[1]
        rounding = 2 * of_layers(net.stem, x.dtype) * float(wanted.trace())
        rounding += of_gram(wanted[None], wanted[None], own.positions, x.dtype)
        assert_within(own.hessian[0], wanted, rounding)


@EMPTY
@pytest.mark.parametrize("correction", ["none", "bias", "batchnorm", "reestimate"])
@pytest.mark.parametrize("words", [[], ["activation=mse", "activation.bits=8"], ["positions=0.5"]])
def test_every_expert_is_quantized(empty, correction, words):
    net, x = Routed(empty), images()
    words = [
        *words,
        f"correction={correction}",
        *(["correction.batch_size=2"] if correction != "none" else []),
    ]
    made = sq.quantize(net, x, *words, quantizer="sensiquant", bits=4)
    for own in made.experts:
        assert max(len(row.unique()) for row in own[0].weight.flatten(1)) <= 16
    with torch.no_grad():
        wanted, got = net.eval()(x), made(x)
    assert float((got - wanted).square().sum()) < 0.05 * float(wanted.square().sum())


@EMPTY
@pytest.mark.parametrize(
    "sensitivity", ["label_free", "output_error", "weight_mse", "kl", "interaction", "mask_kl"]
)
def test_sensitivities_price_every_expert_or_say_why_not(empty, sensitivity):
    words = [f"sensitivity={sensitivity}", "allocation=ilp", "activation=mse"]
    if sensitivity not in ("weight_mse", "mask_kl"):
        words.append("sensitivity.input_bits=[4,8]")
    if empty or sensitivity in ("label_free", "output_error", "weight_mse"):
        sq.quantize(Routed(empty), images(), *words, quantizer="rtn", bits=4)
        return
    with pytest.raises(SqError, match=r"layer experts\.1\.0 is not called by the first image"):
        sq.quantize(Routed(empty), images(), *words, quantizer="rtn", bits=4)


@EMPTY
@pytest.mark.parametrize("quantizer", ["adaround", "brecq", "eptq", "asq_ptq"])
def test_learned_quantizers_say_why_not(empty, quantizer):
    words = ["quantizer.learn.iterations=1", "quantizer.learn.batch=2", "activation=mse"]
    words += ["quantizer.then.batch=2"] if quantizer == "brecq" else []
    with pytest.raises(SqError, match=r"choose quantizer=") as caught:
        sq.quantize(Routed(empty), images(), *words, quantizer=quantizer, bits=4)
    assert len(str(caught.value).splitlines()) == 1


def test_ranges_of_few_images_are_refused_by_the_layer_they_miss():
    with pytest.raises(
        SqError,
        match=r"layer experts\.1\.0 was never called on the 1 .* activation\.observe\.images",
    ):
        sq.quantize(
            Routed(False),
            images(),
            "activation=mse",
            "activation.observe.images=1",
            quantizer="rtn",
            bits=4,
        )


@pytest.mark.parametrize("batch_size", [3, 12])
def test_layers_that_get_other_images_once_quantized_are_left_alone(batch_size):
    """The quantized network sends one image elsewhere: what both experts see cannot be compared."""
    x = images()
    one, other = Routed(False).eval(), Routed(False).eval()
    for module in one.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.weight.data.mul_(1.1)
    moved = x.clone()
    moved[1] -= 1  # to the first expert
    other.register_forward_pre_hook(lambda module, args: (args[0],))
    one.register_forward_pre_hook(
        lambda module, args: (
            torch.where((args[0] == x[1]).all((1, 2, 3), True), moved[1], args[0]),
        )
    )
    found = layer_by_layer.repair(one, other, x, Bias, batch_size=batch_size)
    assert "experts.0.0" in found["left_alone"]
    assert found["error_after"] <= found["error_before"]
    assert torch.equal(one.experts[0][0].bias, other.experts[0][0].bias)


def with_statistics(net):
    """Return `net` with BatchNorms that are not the identity."""
    random = torch.Generator().manual_seed(5)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(generator=random)
            module.running_var.uniform_(0.5, 2, generator=random)
    return net.eval()


@EMPTY
def test_batchnorms_of_all_experts_are_folded(empty):
    net, x = with_statistics(Routed(empty)), images()
    first, plain = copy.deepcopy(net), copy.deepcopy(net)
    names = [f"experts.{number}.1" for number in range(EXPERTS)]
    with torch.no_grad():
        wanted = net(x)
        found = batchnorm_folding.fold(net, x[:1], x)
        assert (found.folded, found.not_folded) == (names, [])
        torch.testing.assert_close(net(x), wanted, rtol=1e-4, atol=1e-5)
        reason = "no image reaches it" if empty else "called 0 times"
        assert batchnorm_folding.fold(first, x[:1]).not_folded == [
            f"{name} ({reason})" for name in names[1:]
        ]
        batchnorm_folding.fold_pairs(plain, found.pairs)
        assert torch.equal(plain(x), net(x))
    assert all(isinstance(own[1], nn.Identity) for own in (*net.experts, *plain.experts))


def test_folding_that_changes_what_an_expert_returns_is_refused_by_images_that_reach_it():
    class Twice(nn.Sequential):
        def forward(self, x):
            y = self[0](x)
            return self[1](y) + y

    net, x = Routed(False), images()
    net.experts[2] = Twice(*net.experts[2])
    before = {name: value.clone() for name, value in with_statistics(net).state_dict().items()}
    with pytest.raises(
        SqError, match=r"^folding experts\.2\.1 into experts\.2\.0 changes the outputs "
    ):
        batchnorm_folding.fold(net, x[:1], x)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_layer_that_goes_without_its_batchnorm_for_some_images_is_left():
    class Now(nn.Sequential):
        def forward(self, x):
            y = self[0](x)
            return self[1](y) if x.mean() > 0 else y

    net, x = with_statistics(Now(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))), images()
    dark, bright = x[expert(x) == 0], x[expert(x) == 2]
    found = batchnorm_folding.fold(net, dark, torch.cat([dark, bright]))
    assert found == batchnorm_folding.Folded([], ["1 (0 does not feed it for all images)"])


def test_pairs_that_are_none_are_not_folded():
    net = with_statistics(Routed(False))
    for pair in (("stem", "head"), ("experts.0.1", "experts.0.1")):
        with pytest.raises(ValueError, match="cannot be folded into"):
            batchnorm_folding.fold_pairs(net, [batchnorm_folding.Pair(*pair)])


HEAD = """
import torch
from torch import nn
from torch.nn import functional as F

EXPERTS = 3


"""


def test_packed_file_of_a_routed_network_is_folded_as_the_run_was(tmp_path, monkeypatch):
    working = tmp_path / "cwd"
    working.mkdir()
    (working / "routednet.py").write_text(
        HEAD + inspect.getsource(Routed) + "\n\n" + inspect.getsource(expert)
    )
    net = with_statistics(Routed(False))
    save_file(net.state_dict(), working / "net.safetensors")
    random = np.random.default_rng(0)
    for split in ("train", "val"):
        for kind in range(5):
            folder = working / "photos" / split / str(kind)
            folder.mkdir(parents=True)
            for number in range(3):  # dark, grey and bright
                pixels = random.integers(0, 60, (6, 6, 3), dtype=np.uint8) + np.uint8(95 * number)
                Image.fromarray(pixels).save(folder / f"{number}.png")
    words = ["plugins=[routednet]", "model=checkpoint", "model.constructor=routednet.Routed"]
    words += ["model.arguments.empty=false", f"model.weights={working / 'net.safetensors'}"]
    words += [
        "model.data.input_size=[3,6,6]",
        "dataset=image_folder",
        f"dataset.root={working / 'photos'}",
    ]
    words += ["calibration.images=15", "workers=0", "fold=true", "bits=8", "export=packed"]
    done = run(tmp_path, *words)
    assert done.returncode == 0, done.stderr
    (made,) = records(tmp_path)
    assert made["folded"] == {
        "folded": [f"experts.{number}.1" for number in range(EXPERTS)],
        "left": [],
    }
    assert made["export"]["figures"]["top1"] == made["results"]["top1"]
    monkeypatch.chdir(working)
    monkeypatch.syspath_prepend(str(working))
    again = sq.load(tmp_path / "outputs" / made["export"]["file"], plugins=["routednet"])
    assert all(isinstance(own[1], nn.Identity) for own in again.experts)
    with torch.no_grad():
        x = images()
        assert float((again(x) - net(x)).norm() / net(x).norm()) < 0.05
