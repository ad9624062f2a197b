"""What networks take, counted by hand."""

from dataclasses import replace

import torch
from sensitivity_problems import images, labels, problem, tricky
from torch import nn

from sq import resources


class Tied(nn.Module):
    """Two names for one weight, and a buffer that is not stored."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(3, 3, bias=False), nn.Linear(3, 3)
        self.two.weight = self.one.weight
        self.again = self.one
        self.register_buffer("seen", torch.zeros(5), persistent=False)
        self.register_buffer("mean", torch.zeros(4))
        self.register_buffer("count", torch.zeros(4, dtype=torch.long))


def test_what_modules_share_is_stored_once():
    assert resources.numbers(Tied()) == 9 + 3 + 4


def test_rest_is_what_no_bits_change():
    own = problem(tricky(), images(2), labels(2))
    layers = own.model.layers
    channels = sum(layer.groups * layer.outputs for layer in layers)
    stored = resources.numbers(own.model.net) - sum(layer.weights for layer in layers)
    assert resources.rest(own.model, own) == {"bytes": 4 * (stored + 2 * channels), "bops": 0}
    head = layers[-1]
    left = replace(own, model=replace(own.model, layers=layers[:-1]))
    assert resources.rest(own.model, left) == {
        "bytes": 4 * (stored + head.weights + 2 * (channels - head.outputs)),
        "bops": head.macs * 32 * 32,
    }
