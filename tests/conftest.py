import gc
import os
import signal
from pathlib import Path

import pytest
import torch
from hypothesis import settings
from omegaconf import OmegaConf

from sq.config.instantiate import build
from sq.dataset import loading
from sq.model import digits_resnet

# Where the tests are started in the background, the shell has SIGINT ignored, in every process they
# start as well.
signal.signal(signal.SIGINT, signal.default_int_handler)

CONF = Path(__file__).resolve().parent.parent / "conf"

# On layers this small a second thread costs more than it brings; tests/arithmetic.py runs them with
# two as well.
torch.set_num_threads(int(os.environ.get("SQ_TEST_THREADS", "1")))

# Composing a config makes many small objects, and looking through all of PyTorch's for garbage each
# time took a fifth of it.
gc.set_threshold(50_000, 20, 100)


def pytest_collection_modifyitems(items):
    """Begin with the tests that wait for a cluster; at the end, the other processes would be idle."""
    items.sort(key=lambda item: item.path.name != "test_slurm.py")


def pytest_collection_finish():
    """Let the garbage collector pass over what modules hold to the end."""
    gc.collect()
    gc.freeze()


# Who runs the tests may use W&B for work.
for variable in ("MODE", "DISABLED", "PROJECT", "ENTITY", "DIR"):
    os.environ.pop(f"WANDB_{variable}", None)

EXAMPLES = int(os.environ.get("SQ_TEST_EXAMPLES", "60"))  # tests/arithmetic.py asks for fewer
settings.register_profile(
    "sq", derandomize=True, database=None, deadline=None, max_examples=EXAMPLES
)
settings.load_profile("sq")


@pytest.fixture(scope="session")
def fit():
    return build(OmegaConf.to_container(OmegaConf.load(CONF / "grid" / "uniform.yaml")), "grid")


@pytest.fixture(scope="session")
def correlated():
    # Heavy-tailed weights; rectified, correlated inputs whose channels differ in size. Float64, H
    # slightly damped.
    def make(seed, G=1, O=4, I=8, damp=0.01):
        random = torch.Generator().manual_seed(seed)
        W, mix, shift, size, noise = (
            torch.randn(G, *shape, generator=random, dtype=torch.float64)
            for shape in ((O, I), (I, I), (I, 1), (I, 1), (I, 4 * I))
        )
        X = (mix @ noise / I**0.5 + 0.5 * noise + shift).relu() * (0.5 * size).exp()
        H = 2 * X @ X.mT / X.shape[2]
        mean = H.diagonal(dim1=-2, dim2=-1).mean(-1)
        return W * W.abs(), H + damp * mean.view(G, 1, 1) * torch.eye(I, dtype=H.dtype)

    return make


@pytest.fixture(scope="session")
def digits():
    from sq.dataset import digits

    return digits.load(name="digits_every_3", every=3)


@pytest.fixture(scope="session")
def digits_train(digits):
    return whole(digits.train, digits_resnet.prepare)


@pytest.fixture(scope="session")
def digits_test(digits):
    return whole(digits.test, digits_resnet.prepare)


def whole(split, prepare):
    return loading.load(split, range(len(split.ids)), prepare, "images")


@pytest.fixture(scope="session")
def resnet():
    return digits_resnet.load(weights=None, expected=None)


@pytest.fixture(scope="session")
def needs_data():
    if not os.environ.get("SQ_DATA"):
        pytest.skip(
            "SQ_DATA is not set: it names the folder that holds weights/, cifar10/, imagenet/ and coco/"
        )


@pytest.fixture(scope="session")
def cifar10(needs_data):
    return build(
        OmegaConf.to_container(OmegaConf.load(CONF / "dataset" / "cifar10.yaml")), "dataset"
    )()
