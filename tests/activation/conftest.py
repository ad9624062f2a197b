import pytest
import torch
from torch.nn import functional as F

from sq.activation.histogram import Histograms


@pytest.fixture(scope="session")
def see():
    # The histogram of a tensor
    def see(x, bins=2048):
        found = Histograms(bins)
        found.widen("x", x)
        found.close()
        found.count("x", x)
        return found.finish()["x"]

    return see


@pytest.fixture(scope="session")
def inputs():
    # What layers are fed, by the kind of layer before; heavier tails than the normal distribution
    random = torch.Generator().manual_seed(0)
    x = torch.randn(20000, generator=random) * (0.5 * torch.randn(20000, generator=random)).exp()
    return {
        "normal": x,
        "relu": x.relu(),
        "relu6": (2 * x).clamp(0, 6),
        "silu": F.silu(2 * x),
        "negative": -x.relu(),
        "shifted": x.abs() + 3,
        "constant": torch.full((50,), 1.7),
        "negative constant": torch.full((50,), -0.3),
        "zero": torch.zeros(50),
    }
