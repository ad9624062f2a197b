"""Where memory does not suffice, work goes on in halves, with the same result, and the record says so."""

import pytest
import torch
from cli_helpers import compose, settings
from tolerances import assert_within, of_gram, of_layers

from sq.errors import SqError
from sq.hessian import layer_statistics
from sq.runs import job
from sq.runs.sweep.expand import Job
from sq.runtime import out_of_memory


@pytest.fixture(autouse=True)
def halved():
    """Return the sizes that fitted, by work, as a record has them."""
    with out_of_memory.remembering() as sizes:
        yield sizes


def cramped(most):
    """Return a pre-forward hook that has no memory for more than `most` images."""

    def refuse(module, args):
        if len(args[0]) > most:
            raise torch.OutOfMemoryError(
                "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has ..."
            )

    return refuse


def test_fitting_halves_until_it_fits_and_begins_there_the_next_time(halved):
    tried = []

    def attempt(size):
        tried.append(size)
        if size > 5:
            raise MemoryError
        return size

    assert out_of_memory.fitting("work", attempt, 40) == 5
    assert out_of_memory.fitting("work", attempt, 40) == 5
    assert out_of_memory.fitting("work", attempt, 3) == 3
    assert tried == [40, 20, 10, 5, 5, 3]
    assert halved == {"work": 5}


def test_what_does_not_fit_one_by_one_fails_and_other_errors_pass(halved):
    def never(size):
        raise torch.OutOfMemoryError("no")

    def wrong(size):
        raise RuntimeError("shapes differ")

    with pytest.raises(torch.OutOfMemoryError):
        out_of_memory.fitting("work", never, 4)
    with pytest.raises(RuntimeError, match="shapes differ"):
        out_of_memory.fitting("other", wrong, 4)
    assert "other" not in halved


def test_real_errors_of_cpu_memory_are_known():
    with pytest.raises(RuntimeError) as torch_error:
        torch.empty(2**46)
    assert out_of_memory.is_out(torch_error.value)
    with (
        pytest.raises(SqError, match=r"^out of memory \(.*\): lower batch_size="),
        out_of_memory.explained(),
    ):
        torch.empty(2**46)
    assert not out_of_memory.is_out(RuntimeError("shapes differ"))


@pytest.mark.parametrize(
    ("text", "out"),
    [
        ("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`", True),
        ("cuDNN error: CUDNN_STATUS_ALLOC_FAILED", True),
        (
            "cusolver error: CUSOLVER_STATUS_ALLOC_FAILED, when calling `cusolverDnCreate(handle)`",
            True,
        ),
        ("cuFFT error: CUFFT_ALLOC_FAILED", True),
        ("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported", True),
        ("unable to mmap 4096 bytes from file <x>: Cannot allocate memory (12)", True),
        ("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`", False),
        ("CUDA error: device-side assert triggered", False),
    ],
)
def test_libraries_that_take_memory_beside_pytorch(text, out):
    assert out_of_memory.is_out(RuntimeError(text)) is out


def test_statistics_in_halves_are_those_of_the_whole(resnet, digits_train, halved):
    model, batch = resnet, digits_train
    whole = layer_statistics.collect(model, batch, batch_size=None, positions=1.0, seed=0)
    handle = model.net.register_forward_pre_hook(cramped(7))
    try:
        parts = layer_statistics.collect(model, batch, batch_size=None, positions=1.0, seed=0)
    finally:
        handle.remove()
    assert halved["statistics"] <= 7
    for name, own in whole.layers.items():
        rounding = 2 * of_gram(own.hessian, own.hessian, own.positions, torch.float32)
        rounding += (
            2
            * of_layers(model.net, torch.float32)
            * float(own.hessian.diagonal(dim1=1, dim2=2).sum(1).max())
        )
        assert_within(parts.layers[name].hessian, own.hessian, rounding)
        assert parts.layers[name].positions == own.positions


def test_a_run_in_halves_leaves_the_figures_of_a_whole_one(tmp_path, monkeypatch, halved):
    words = ["quantizer=obq", "activation=mse", "activation.observe.images=32", "cache=null"]
    config, choices = compose(*settings(tmp_path), *words)
    whole = job.execute(Job([], config, choices), wait=True)
    assert whole["halved"] == {}
    from sq.solver import obq

    eliminate = obq.greedy_elimination.eliminate

    def tight(rows, *rest, **knobs):
        if len(rows) > 40:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return eliminate(rows, *rest, **knobs)

    monkeypatch.setattr(obq.greedy_elimination, "eliminate", tight)
    handle = torch.nn.modules.module.register_module_forward_pre_hook(
        lambda module, args: (
            cramped(100)(module, args) if isinstance(module, torch.nn.Conv2d) else None
        )
    )
    try:
        parts = job.execute(Job([], {**config, "rerun": True}, choices), wait=True)
    finally:
        handle.remove()
    assert parts["status"] == "done", parts.get("traceback")
    assert parts["halved"]["evaluate"] <= 100
    assert any(name.startswith("rows of") and size <= 40 for name, size in parts["halved"].items())
    assert parts["results"]["codes"] == whole["results"]["codes"]
    assert parts["results"]["top1"] == whole["results"]["top1"]


def test_a_run_that_cannot_fit_fails_with_advice(tmp_path):
    config, choices = compose(*settings(tmp_path), "cache=null")
    handle = torch.nn.modules.module.register_module_forward_pre_hook(
        lambda module, args: cramped(0)(module, args)
    )
    try:
        made = job.execute(Job([], config, choices), wait=True)
    finally:
        handle.remove()
    assert made["status"] == "failed"
    assert made["error"].startswith("out of memory (CUDA out of memory): lower batch_size=")


def test_what_one_run_remembers_another_does_not():
    def attempt(size):
        if size > 2:
            raise MemoryError
        return size

    with out_of_memory.remembering() as first:
        assert out_of_memory.fitting("work", attempt, 8) == 2
    with out_of_memory.remembering() as second:
        assert second == {}
    assert first == {"work": 2}
