"""Checkpoints as people have them: where in the file the weights are, what their names begin with, what they hold."""

import argparse
import pickle
import threading
import time
import warnings
from collections import OrderedDict

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.optim.swa_utils import AveragedModel

from sq.errors import SqError
from sq.model.state_dict import load_into


def network(seed):
    torch.manual_seed(seed)
    net = nn.Sequential(
        OrderedDict(conv=nn.Conv2d(2, 3, 3), bn=nn.BatchNorm2d(3), head=nn.Linear(3, 2))
    )
    net.bn.running_mean.normal_()
    return net.eval()


STORED, LAST = network(1), network(2)


def renamed(prefix, net=STORED):
    return {f"{prefix}{name}": tensor for name, tensor in net.state_dict().items()}


def loaded(stored, path):
    torch.save(stored, path)
    net = network(3)
    load_into(net, path)
    return net


def same(net, other=STORED):
    return all(torch.equal(t, other.state_dict()[name]) for name, t in net.state_dict().items())


@pytest.mark.parametrize(
    "key",
    [
        "model",
        "state_dict",
        "model_state_dict",
        "net",
        "network",
        "ema",
        "model_ema",
        "module",
        "params",
        "generator",
    ],
)
def test_state_dict_under_a_key_is_taken_and_that_is_said(key, tmp_path, capsys):
    optimizer = torch.optim.Adam(STORED.parameters()).state_dict()
    beside = {"optimizer": optimizer, "epoch": 3, "best": torch.tensor(0.5), "history": [1.0]}
    path = tmp_path / "net.pth"
    assert same(loaded({**beside, key: STORED.state_dict()}, path))
    assert capsys.readouterr().err == f"{path}: weights are those under {key}\n"


@pytest.mark.parametrize("other", ["semantic", "swapped", "schema"])
def test_names_that_only_hold_the_letters_are_no_averages(other, tmp_path):
    with pytest.raises(SqError, match="several sets of weights"):
        loaded({"model": LAST.state_dict(), other: STORED.state_dict()}, tmp_path / "net.pth")


@pytest.mark.parametrize("averages", ["ema", "model_ema", "params_ema", "ema_state_dict"])
def test_averages_over_training_are_preferred(averages, tmp_path, capsys):
    stored = {"model": LAST.state_dict(), averages: STORED.state_dict()}
    assert same(loaded(stored, tmp_path / "net.pth"))
    said = capsys.readouterr().err
    assert (
        f"weights are those under {averages}; averages over training, not those under model" in said
    )


def test_of_two_networks_none_is_guessed(tmp_path):
    with pytest.raises(
        SqError,
        match=r"several sets of weights that fit Sequential \(under a, under b\): save the one",
    ):
        loaded({"a": STORED.state_dict(), "b": LAST.state_dict()}, tmp_path / "net.pth")


def test_other_dictionaries_of_tensors_are_passed_over(tmp_path):
    stored = {
        "scaler": {"scale": torch.ones(1)},
        "nested": {"model": STORED.state_dict(), "loss": {"w": torch.ones(2)}},
    }
    assert same(loaded(stored, tmp_path / "net.pth"))


@pytest.mark.parametrize(
    "prefix",
    [
        "module.",
        "model.",
        "net.",
        "_orig_mod.",
        "module._orig_mod.",
        "_orig_mod.module.",
        "ema_model.",
        "backbone.body.",
    ],
)
def test_prefix_of_all_names_is_taken_off(prefix, tmp_path, capsys):
    path = tmp_path / "net.pth"
    assert same(loaded(renamed(prefix), path))
    left = prefix.replace("_orig_mod.", "")
    assert capsys.readouterr().err == (
        f"{path}: weights are those of names that begin with {left}\n" if left else ""
    )


def test_wrappers_as_they_save_themselves(tmp_path):
    parts = OrderedDict(conv=torch.compile(network(1).conv), bn=network(1).bn, head=network(1).head)
    wrapped = [
        torch.compile(STORED),
        nn.DataParallel(STORED),
        AveragedModel(STORED),
        nn.Sequential(parts),
    ]
    wrapped += [AveragedModel(torch.compile(nn.DataParallel(STORED)))]
    for n, net in enumerate(wrapped):
        assert same(loaded(net.state_dict(), tmp_path / f"{n}.pt"))


def test_what_lightning_keeps_beside_the_network_is_left_out_and_counted(tmp_path, capsys):
    state = renamed("model.") | {"criterion.weight": torch.ones(2), "accuracy.hits": torch.zeros(1)}
    stored = {"state_dict": state, "hyper_parameters": {"lr": 0.1}, "callbacks": {}, "epoch": 2}
    assert same(loaded(stored, tmp_path / "last.ckpt"))
    assert "2 other tensors left out (criterion.weight, accuracy.hits)" in capsys.readouterr().err


def test_student_and_teacher_are_not_guessed(tmp_path):
    both = renamed("student.") | renamed("teacher.", LAST)
    with pytest.raises(
        SqError, match=r"several sets .*begin with student\., of names that begin with teacher\."
    ):
        loaded(both, tmp_path / "net.pth")


def test_average_beside_the_network_in_one_state_dict(tmp_path):
    assert same(loaded(renamed("model.", LAST) | renamed("ema_model."), tmp_path / "net.pth"))


def test_plain_state_dict_needs_no_word(tmp_path, capsys):
    assert same(loaded(STORED.state_dict(), tmp_path / "net.pth"))
    assert capsys.readouterr().err == ""


def test_bystanders_of_training_scripts_are_not_run_and_not_in_the_way(tmp_path):
    stored = {
        "model": STORED.state_dict(),
        "args": argparse.Namespace(lr=0.1, net="x"),
        "best": np.float64(3),
        "curve": np.arange(3.0),
    }
    assert same(loaded(stored, tmp_path / "net.pth.tar"))


@pytest.fixture
def side_by_side(monkeypatch):
    """Have each `torch.load` wait until two are at it, or a while; the second ends after the first."""
    real, within, first_ended = torch.load, [], threading.Event()
    both = threading.Event()

    def load(*args, **named):
        within.append(threading.get_ident())
        if len(within) == 1:
            both.wait(0.5)
            try:
                return real(*args, **named)
            finally:
                first_ended.set()
        both.set()
        first_ended.wait(20)
        time.sleep(0.2)  # for the first to leave what it has entered
        return real(*args, **named)

    monkeypatch.setattr(torch, "load", load)


def test_two_threads_read_checkpoints_with_bystanders_and_leave_all_as_it_was(
    side_by_side, tmp_path
):
    paths = [tmp_path / "a.pth", tmp_path / "b.pth"]
    for path in paths:
        torch.save({"model": STORED.state_dict(), "args": argparse.Namespace(lr=0.1)}, path)
    before, filters = set(torch.serialization.get_safe_globals()), list(warnings.filters)
    nets, errors = [network(3), network(4)], []

    def load(net, path):
        try:
            load_into(net, path)
        except SqError as error:
            errors.append(error)

    crew = [threading.Thread(target=load, args=pair) for pair in zip(nets, paths, strict=True)]
    for thread in crew:
        thread.start()
    for thread in crew:
        thread.join(60)
    assert errors == []
    assert all(same(net) for net in nets)
    assert set(torch.serialization.get_safe_globals()) == before
    assert warnings.filters == filters


def test_nothing_is_allowed_any_more_after_a_damaged_checkpoint(tmp_path):
    path = tmp_path / "net.pth"
    torch.save(
        {"model": STORED.state_dict(), "args": argparse.Namespace(lr=0.1), "more": FailingToLoad()},
        path,
    )
    before = set(torch.serialization.get_safe_globals())
    with pytest.raises(SqError, match="holds more than tensors"):
        load_into(network(3), path)
    assert set(torch.serialization.get_safe_globals()) == before
    with pytest.raises(pickle.UnpicklingError, match=r"argparse\.Namespace"):
        torch.load(path, weights_only=True)


class FailingToLoad:
    pass


def test_whole_network_is_refused(tmp_path):
    with pytest.raises(
        SqError, match=r"more than tensors \(torch\.nn\..*torch\.save\(net\.state_dict\(\), FILE\)"
    ) as error:
        loaded({"model": STORED}, tmp_path / "net.pth")
    assert "\n" not in str(error.value)


@pytest.mark.filterwarnings("ignore")  # TorchScript is deprecated, and files of it remain
def test_torchscript_is_refused_with_the_way_out(tmp_path):
    path = tmp_path / "net.pt"
    torch.jit.trace(STORED.conv, torch.zeros(1, 2, 4, 4)).save(path)
    with pytest.raises(
        SqError, match=r"holds a TorchScript program, .*torch\.jit\.load\(FILE\)\.state_dict\(\)"
    ) as error:
        load_into(network(3), path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float64, torch.float8_e4m3fn]
)
def test_floats_are_converted(dtype, tmp_path, capsys):
    stored = {
        n: t.to(dtype) if t.is_floating_point() else t for n, t in STORED.state_dict().items()
    }
    net = loaded(stored, tmp_path / "net.pth")
    assert all(torch.equal(t, stored[n].to(t.dtype)) for n, t in net.state_dict().items())
    assert ("in float64, rounded" in capsys.readouterr().err) == (dtype == torch.float64)


def test_sparse_tensors_are_filled_in(tmp_path):
    state = STORED.state_dict()
    assert same(
        loaded(state | {"head.weight": state["head.weight"].to_sparse()}, tmp_path / "net.pth")
    )


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda w: w.to("meta"), r"head\.weight has no values \(it is on the device meta\)"),
        (
            lambda w: torch.quantize_per_tensor(w, 0.1, 0, torch.qint8),
            r"head\.weight is stored as qint8",
        ),
        (
            lambda w: (10 * w).to(torch.int8),
            r"head\.weight is stored as int8, as in a network that is quantized",
        ),
        (lambda w: w.to(torch.complex64), r"head\.weight holds complex numbers"),
        (lambda w: w * float("nan"), r"NaN or infinity in head\.weight"),
        (lambda w: w.double() + 1e300, r"NaN or infinity in head\.weight"),
        (
            lambda w: w[:1],
            r"another network than Sequential: 1 of another shape \(head\.weight \(1, 3\)\)",
        ),
    ],
)
def test_what_are_no_full_precision_weights_is_named(spoil, says, tmp_path):
    state = STORED.state_dict()
    with pytest.raises(SqError, match=says) as error:
        loaded(state | {"head.weight": spoil(state["head.weight"])}, tmp_path / "net.pth")
    assert "\n" not in str(error.value)


def test_another_network_is_compared_where_it_fits_best(tmp_path):
    state = renamed("module.")
    del state["module.head.bias"]
    says = r"another network than Sequential: 1 missing \(head\.bias\), looked for under model of names .* module\.$"
    with pytest.raises(SqError, match=says):
        loaded({"model": state, "epoch": 1}, tmp_path / "net.pth")


def test_file_is_read_by_its_content(tmp_path):
    for name, write in (("a.pth", save_file), ("b.safetensors", torch.save), ("c.BIN", torch.save)):
        write(STORED.state_dict(), tmp_path / name)
        net = network(3)
        load_into(net, tmp_path / name)
        assert same(net)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", r"it is empty \(0 bytes\)"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
            "it is a Git LFS pointer.*git lfs pull",
        ),
        (b"\n<!DOCTYPE html><html></html>", "it is a page of HTML"),
        (bytes(1000), "it begins with zeros"),
        (b"just text", "is not a whole"),
    ],
)
def test_file_of_another_kind_is_named(suffix, content, says, tmp_path):
    path = tmp_path / f"net{suffix}"
    path.write_bytes(content)
    with pytest.raises(SqError, match=says) as error:
        load_into(network(3), path)
    assert "\n" not in str(error.value)
    assert str(error.value).startswith(f"{path} is not a whole ")


@pytest.mark.parametrize(
    "stored", [[torch.ones(2)], {"epoch": 3, "lr": 0.1}, 7, None, "x", {1: torch.ones(2)}]
)
def test_file_without_a_state_dict(stored, tmp_path):
    with pytest.raises(
        SqError,
        match=r"holds no state dict, that is, tensors by name.*torch\.save\(net\.state_dict",
    ):
        loaded(stored, tmp_path / "net.pth")
