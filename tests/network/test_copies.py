"""Networks as users have them: wrapped, with weights that hooks compute, with tensors kept from a pass."""

import threading

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

import sq
from sq.errors import SqError
from sq.network.copies import bake, channels_last, copied


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3), nn.Flatten(), nn.Linear(64, 5)
    )


def images(count=8):
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def outputs(net):
    with torch.no_grad():
        return net(images())


class Keeps(nn.Module):
    """Keeps features of the last pass, with what autograd knows of them."""

    def __init__(self):
        super().__init__()
        self.body = network()
        self.features = {}

    def forward(self, x):
        self.features["first"] = [self.body[0](x)]
        return self.body[1:](self.features["first"][0])


def weight_norm():
    net = network()
    nn.utils.weight_norm(net[0])
    nn.utils.weight_norm(net[4], dim=None)
    return net


def spectral_norm():
    net = network()
    nn.utils.spectral_norm(net[2])
    net(images())
    return net


def pruned():
    net = network()
    prune.l1_unstructured(net[0], "weight", amount=0.5)
    prune.random_unstructured(net[4], "bias", amount=0.4)
    return net


@pytest.mark.filterwarnings(
    "ignore:.*weight_norm:FutureWarning", "ignore:.*weight_norm:DeprecationWarning"
)
@pytest.mark.parametrize("make", [weight_norm, spectral_norm, pruned])
def test_weights_that_hooks_compute_are_quantized(make):
    net = make().eval()
    wanted, before = outputs(net), {name: t.clone() for name, t in net.state_dict().items()}
    made = copied(net)
    assert torch.equal(outputs(made), wanted)
    bake(made)
    assert torch.equal(outputs(made), wanted)
    assert set(made.state_dict()) == set(network().state_dict())
    quantized = sq.quantize(net, images(), quantizer="rtn", bits=3)
    for name in ("0", "2", "4"):
        rows = quantized.get_submodule(name).weight.flatten(1)
        assert max(len(row.unique()) for row in rows) <= 8
    assert all(torch.equal(t, before[name]) for name, t in net.state_dict().items())
    assert torch.equal(outputs(net), wanted)


def test_tensors_kept_from_a_pass_are_copied_as_values():
    net = Keeps().eval()
    net(images())
    kept = net.features["first"][0]
    made = copied(net)
    assert torch.equal(made.features["first"][0], kept)
    assert made.features["first"][0].grad_fn is None
    assert net.features["first"][0] is kept


@pytest.mark.parametrize(
    "words", [["quantizer=rtn"], ["quantizer=eptq", "quantizer.learn.iterations=2"]]
)
def test_gradients_leave_no_tensors_that_cannot_be_copied(words):
    words += ["quantizer.learn.batch=4"] if len(words) > 1 else []
    first, *rest = words
    sq.quantize(
        Keeps(),
        images(),
        *rest,
        "sensitivity=label_free",
        "allocation=ilp",
        quantizer=first[len("quantizer=") :],
        bits=4,
    )


@pytest.mark.parametrize(
    "wrap",
    [
        torch.compile,
        nn.DataParallel,
        lambda net: nn.DataParallel(torch.compile(net)),
        lambda net: nn.Sequential(torch.compile(net[:3]), *net[3:]),
        lambda net: nn.Sequential(
            nn.DataParallel(nn.Sequential(torch.compile(net[:2]), net[2])), *net[3:]
        ),
    ],
)
def test_wrappers_are_taken_off(wrap):
    net = wrap(network()).eval()
    kinds = [type(module) for module in net.modules()]
    made = copied(net)
    assert {type(module).__module__.partition(".")[0] for module in made.modules()} == {"torch"}
    assert not any(
        isinstance(module, nn.DataParallel) or hasattr(module, "_orig_mod")
        for module in made.modules()
    )
    assert torch.equal(outputs(made), outputs(network()))
    assert [type(module) for module in net.modules()] == kinds


def test_modules_that_are_shared_stay_so():
    net = network()
    shared = nn.Sequential(torch.compile(net[0]), net[1], net[0])
    made = copied(shared)
    assert made[0] is made[2]
    assert made[0] is not net[0]


def test_what_cannot_be_copied_is_told_in_one_line():
    net = network()
    net.lock = threading.Lock()
    with pytest.raises(
        SqError, match=r"^Sequential cannot be copied \(TypeError: cannot pickle '_thread.lock'"
    ):
        copied(net)
    with pytest.raises(SqError, match=r"should be a torch\.nn\.Module, got dict"):
        sq.quantize({}, images(), quantizer="rtn", bits=4)


def test_layout_is_that_of_convolutions_with_two_axes():
    net = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Conv3d(2, 3, 3), nn.Linear(2, 3))
    before = [t.clone() for t in net.state_dict().values()]
    assert channels_last(net) is net
    assert net[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert net[1].weight.is_contiguous()
    assert all(torch.equal(a, b) for a, b in zip(net.state_dict().values(), before, strict=True))


class Video(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv3d(1, 4, 3), nn.Linear(4, 5)

    def forward(self, x):
        return self.head(self.conv(x if x.ndim == 5 else x.unsqueeze(1)).mean((2, 3, 4)))


@pytest.mark.parametrize("shape", [(8, 1, 3, 8, 8), (8, 3, 8, 8)])
def test_networks_with_a_convolution_of_three_axes(shape):
    torch.manual_seed(0)
    net, x = Video().eval(), torch.randn(shape)
    made = sq.quantize(net, x, quantizer="rtn", bits=8)
    with torch.no_grad():
        wanted = net(x)
        assert float((made(x) - wanted).square().sum()) < 1e-3 * float(wanted.square().sum())


class OneByOne(nn.Module):
    """Passes images on to its convolutions one at a time, without an axis of images."""

    def __init__(self):
        super().__init__()
        self.body = network()

    def forward(self, x):
        return self.body[4](torch.stack([self.body[:3](image).flatten() for image in x]))


@pytest.mark.parametrize("quantizer", ["rtn", "gptq", "sensiquant"])
@pytest.mark.parametrize(
    "words", [["activation=mse", "activation.bits=8"], ["correction=bias"], ["fold=true"]]
)
def test_single_images_without_their_axis(quantizer, words):
    one, other = (
        sq.quantize(net, images(), *words, quantizer=quantizer, bits=4)
        for net in (OneByOne(), network())
    )
    wanted = outputs(other)
    # Sums are taken image by image in one of them: codes may differ where two are equally good.
    assert float((outputs(one) - wanted).square().sum()) < 1e-4 * float(wanted.square().sum())


def test_containers_that_hold_themselves_are_looked_into_once():
    net = Keeps()
    net.features["all"] = [net.features]
    assert sq.quantize(net, images(), quantizer="rtn").sq_coverage.share == 1


class OutOfMemory(nn.Linear):
    """Fails at its call `number`, counted over all of them, as a full machine fails sometimes."""

    number, calls = 0, 0

    def forward(self, x):
        OutOfMemory.calls += 1
        if OutOfMemory.calls == OutOfMemory.number:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        return nn.functional.linear(x, self.weight, self.bias)

    def __deepcopy__(self, memo):
        if not OutOfMemory.number:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        new = OutOfMemory(self.in_features, self.out_features)
        new.load_state_dict(self.state_dict())
        return new


# 0: as it is copied; then every call until it is rewritten
@pytest.mark.parametrize("number", range(6))
def test_memory_that_does_not_suffice_is_told_and_changes_nothing(number, monkeypatch):
    monkeypatch.setattr(OutOfMemory, "number", number)
    monkeypatch.setattr(OutOfMemory, "calls", 0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), OutOfMemory(144, 5))
    with pytest.raises(SqError, match="out of memory"):
        sq.quantize(net, images(), "correction=none", quantizer="rtn")
