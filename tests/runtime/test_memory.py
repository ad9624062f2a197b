import pytest
import torch
from torch import nn

from sq.errors import SqError
from sq.hessian import layer_statistics
from sq.network import geometry
from sq.runtime import memory
from sq.types.images import Batch
from sq.types.problem import Model

CPU = torch.device("cpu")
LAYERS, _ = geometry.find(
    nn.Sequential(nn.Linear(100, 50), nn.Linear(1000, 1), nn.Conv2d(8, 8, 3, groups=8))
)
NEED = 8 * (100**2 + 1000**2 + 8 * 9**2) + 4 * 8 * 1000**2


def test_what_fits_passes_and_what_does_not_is_named(monkeypatch):
    monkeypatch.setattr(memory, "available", lambda device: NEED)
    memory.check(LAYERS, CPU)
    memory.check([], CPU)
    monkeypatch.setattr(memory, "available", lambda device: NEED - 1)
    with pytest.raises(
        SqError, match=r"layer 1 has 1000 columns, a Hessian of 0.0075 GiB; .* free on cpu: free"
    ):
        memory.check(LAYERS, CPU)


def test_available_memory_is_what_the_machine_has():
    assert 2**26 < memory.available(CPU) < 2**46


def test_statistics_ask_before_the_first_image(monkeypatch):
    net = nn.Sequential(nn.Linear(4, 2))
    net.register_forward_pre_hook(lambda *_: pytest.fail("called"))
    monkeypatch.setattr(memory, "available", lambda device: 0)
    batch = Batch(torch.zeros(2, 4), torch.zeros(2).long(), ["a", "b"])
    with pytest.raises(SqError, match="layer 0 has 4 columns"):
        layer_statistics.collect(
            Model(net, geometry.find(net)[0], (4,), "", None),
            batch,
            batch_size=2,
            positions=1.0,
            seed=0,
        )
