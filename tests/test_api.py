"""One network, from Python."""

import threading
import time

import hydra
import pytest
import torch
from cli_helpers import CONF, call, compose, records
from torch import nn

import sq
from sq import api as own
from sq import pipeline
from sq.activation import insertion
from sq.config.instantiate import build
from sq.errors import SqError
from sq.quantizer import layerwise
from sq.runtime import torch_setup
from sq.storage.store import Store


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 4, 3),
        nn.Flatten(),
        nn.Linear(64, 5),
    )


def images(count=16):
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("quantizer", ["sensiquant", "rtn", "obq", "eptq"])
def test_a_quantized_copy_comes_back(quantizer):
    net = network().train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    words = (
        ["quantizer.learn.iterations=2", "quantizer.learn.batch=8"] if quantizer == "eptq" else []
    )
    made = sq.quantize(net, images(), *words, quantizer=quantizer, bits=3)
    assert net.training
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert not made.training
    for name in ("0", "3", "5"):
        rows = made.get_submodule(name).weight.flatten(1)
        assert max(len(row.unique()) for row in rows) <= 8
    assert made(images()).shape == (16, 5)


def test_more_bits_are_closer():
    net, x = network().eval(), images()
    with torch.no_grad():
        apart = [
            float((sq.quantize(net, x, bits=bits)(x) - net(x)).square().mean())
            for bits in (2, 4, 8)
        ]
    assert apart[0] > 4 * apart[1] > 16 * apart[2]


def test_settings_are_those_of_the_command_line():
    made = sq.quantize(
        network(), images(), "activation=mse", "activation.bits=4", "fold=true", "ends=8bit", bits=2
    )
    assert {name: grid.levels for name, grid in insertion.attached(made).items()} == {
        "0": 256,
        "3": 16,
        "5": 256,
    }
    assert isinstance(made[1], nn.Identity)


def test_it_is_what_a_run_does(tmp_path, resnet, digits):
    words = [
        "quantizer=sensiquant",
        "bits=3",
        "correction=batchnorm",
        "export=packed",
        "calibration.images=64",
    ]
    assert call(tmp_path, *words).returncode == 0
    (made,) = records(tmp_path)
    run = sq.load(tmp_path / "outputs" / made["export"]["file"])
    draw = build(compose("calibration.images=64")[0]["calibration"], "calibration")
    drawn = draw(resnet, digits, Store(None, 0.0)).x
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as the run was
    try:
        own = sq.quantize(resnet.net, drawn, "sensitivity.bits=[4]", bits=3)
    finally:
        torch.set_num_threads(threads)
    assert all(
        torch.equal(value, own.state_dict()[name]) for name, value in run.state_dict().items()
    )


@pytest.mark.parametrize(
    ("given", "words", "message"),
    [
        (torch.zeros(0, 3, 8, 8), [], r"got torch.float32 \(0, 3, 8, 8\); give a float32 tensor"),
        (torch.zeros(2, 3, 8, 8, dtype=torch.uint8), [], r"got torch.uint8"),
        ([1, 2], [], r"got list; give"),
        (torch.full((2, 3, 8, 8), torch.nan), [], r"hold NaN or infinity"),
        (torch.zeros(2, 3, 8, 8), ["quantizr=rtn"], r"quantizr"),
        (torch.zeros(2, 3, 8, 8), ["quantizer.damp=-1"], r"quantizer\.damp"),
        (torch.zeros(2, 3, 8, 8), ["bits=99"], r"bits=99: allowed are 1 to 16"),
        (torch.randn(2, 3, 8, 8), ["quantizer=lsq"], r"there are no training images"),
    ],
)
def test_bad_input_is_one_line(given, words, message):
    with pytest.raises(SqError, match=message) as caught:
        sq.quantize(network(), given, *words)
    assert len(str(caught.value).splitlines()) == 1


def test_an_unknown_quantizer_is_named():
    with pytest.raises(SqError, match="sensiquan"):
        sq.quantize(network(), images(), quantizer="sensiquan")


@pytest.mark.parametrize(
    "word", ["export=onnx", "calibration.images=3", "dataset=cifar10", "tracker.mode=online"]
)
def test_settings_that_a_call_has_not_are_refused(word):
    with pytest.raises(
        SqError, match=f"^{word.partition('=')[0].partition('.')[0]}: a call has none"
    ):
        sq.quantize(network(), images(), word)


class Pair(nn.Module):
    def forward(self, x):
        return x, x


@pytest.mark.parametrize(
    ("net", "message"),
    [
        (Pair(), "Pair returns tuple: it must return one tensor"),
        (nn.Sequential(nn.Conv2d(5, 2, 3)), "Sequential does not take these images"),
        (network().double(), "the weight of layer 0 is float64; layers are quantized from float32"),
    ],
)
def test_networks_that_do_not_fit_are_refused_in_one_line(net, message):
    with pytest.raises(SqError, match=message) as caught:
        sq.quantize(net, images())
    assert len(str(caught.value).splitlines()) == 1


def test_it_works_within_a_hydra_application_and_from_threads():
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        sq.quantize(network(), images(), quantizer="rtn")
        assert hydra.compose("config")["name"] == "runs", "what was there is there again"
    made, caught = [], []

    def call_it():
        try:
            made.append(sq.quantize(network(), images(), quantizer="rtn"))
        except Exception as error:
            caught.append(error)

    threads = [threading.Thread(target=call_it) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(made), caught) == (4, [])


def state():
    return [
        part.fp32_precision for part in (*torch_setup._precisions(), torch.backends)
    ], torch.are_deterministic_algorithms_enabled()


def medium():
    torch.set_float32_matmul_precision("medium")


@pytest.mark.parametrize(
    "setting",
    [
        lambda: None,
        lambda: setattr(torch.backends.cuda.matmul, "fp32_precision", "tf32"),
        lambda: setattr(torch.backends.cudnn.conv, "fp32_precision", "ieee"),
        medium,
        lambda: torch.use_deterministic_algorithms(True),
    ],
)
def test_pytorch_is_left_as_it_was(setting, monkeypatch):
    before, seen = state(), []

    def solve(*args):
        seen.append(state())
        if len(seen) > 1:
            raise ZeroDivisionError
        return found(*args)

    found = pipeline.quantize
    monkeypatch.setattr(pipeline, "quantize", solve)
    try:
        torch.use_deterministic_algorithms(False)
        setting()
        own = state()
        sq.quantize(network(), images(), quantizer="rtn", bits=4)
        assert state() == own
        with pytest.raises(ZeroDivisionError):
            sq.quantize(network(), images(), quantizer="rtn", bits=4)
        assert state() == own
        if setting is medium:
            assert torch.get_float32_matmul_precision() == "medium"
        assert seen[0][0][:-1] == ["ieee"] * 6
        assert seen[0][1]
    finally:
        torch.set_float32_matmul_precision("highest")
        for part, precision in zip(torch_setup._precisions(), before[0], strict=False):
            part.fp32_precision = precision
        torch.use_deterministic_algorithms(before[1])


def test_threads_take_turns():
    inside, most = [], []

    def enter():
        with torch_setup.exactly():
            inside.append(1)
            most.append(len(inside))
            time.sleep(0.02)
            inside.pop()

    before = state()
    others = [threading.Thread(target=enter) for _ in range(3)]
    for other in others:
        other.start()
    for other in others:
        other.join()
    assert most == [1, 1, 1]
    assert state() == before


def test_what_all_of_pytorch_has_is_left_to_all():
    try:
        torch.backends.fp32_precision = "tf32"
        with torch_setup.exactly():
            pass
        torch.backends.fp32_precision = "ieee"
        assert torch.backends.cuda.matmul.fp32_precision == "ieee"
    finally:
        torch.backends.fp32_precision = "none"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["quantizer=eptq", "quantizer.learn.batch=64"],
            "set quantizer.learn.batch=16 or less, or give 64 images or more",
        ),
        (
            ["sensitivity=fisher"],
            "sensitivity=fisher needs labels, which a call has none of: choose",
        ),
        (
            ["seed=99999999999999999999"],
            "^seed=99999999999999999999: whole numbers go up to 9223372036854775807$",
        ),
        (["seed=-1"], "^seed=-1: allowed are 0 to 9223372036854775807$"),
        (["threads=100000"], "^threads=100000: at most 32768, or null$"),
        (["activation=mse", "activation.observe.bins=99999999999"], "activation.observe.bins"),
        (["batch_size=99999999999999999999"], "^batch_size=99999999999999999999: whole numbers"),
    ],
)
def test_errors_name_what_a_call_has(words, message):
    quantizer, *rest = words if words[0].startswith("quantizer=") else ["quantizer=rtn", *words]
    with pytest.raises(SqError, match=message) as caught:
        sq.quantize(network(), images(), *rest, quantizer=quantizer.partition("=")[2], bits=4)
    assert "calibration." not in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_memory_that_does_not_suffice_is_said_in_terms_of_a_call(monkeypatch):
    def exhaust(*_, **__):
        raise torch.OutOfMemoryError("out of memory. Tried to allocate")

    monkeypatch.setattr(pipeline, "quantize", exhaust)
    with pytest.raises(SqError, match=r"^out of memory .*give fewer images") as caught:
        sq.quantize(network(), images(), quantizer="rtn", bits=4)
    assert "calibration." not in str(caught.value)


def test_a_hessian_that_stays_indefinite(monkeypatch):
    def indefinite(*_, **__):
        raise torch.linalg.LinAlgError("not positive definite")

    monkeypatch.setattr(layerwise, "damped", indefinite)
    with pytest.raises(SqError, match="even with damping 1; give more images or drop the layer"):
        sq.quantize(network(), images(), quantizer="gptq", bits=4)


def test_a_config_is_composed_once_and_belongs_to_each_call():
    own._composed.cache_clear()
    first = own._config(["quantizer=rtn", "bits=4"])
    first["grid"]["symmetric"] = "changed"
    second = own._config(["quantizer=rtn", "bits=4"])
    assert second["grid"]["symmetric"] is False
    assert (own._composed.cache_info().misses, own._composed.cache_info().hits) == (1, 1)
    assert own._config(["quantizer=rtn", "bits=3"])["bits"] == 3
