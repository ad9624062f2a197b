"""What networks take, counted by hand."""

import math
from dataclasses import replace

import grids
import pytest
import torch
from sensitivity_problems import images, labels, problem, tricky
from torch import nn

from sq.network import resource_counts


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
    assert resource_counts.parameter_count(Tied()) == 9 + 3 + 4


def test_what_stays_is_what_no_bits_change():
    own = problem(tricky(), images(2), labels(2))
    layers = own.model.layers
    stored = resource_counts.parameter_count(own.model.net) - sum(layer.weights for layer in layers)
    assert resource_counts.full_precision_rest(own.model, layers) == {
        "bytes": 4 * stored,
        "bops": 0,
    }
    head = layers[-1]
    assert resource_counts.full_precision_rest(own.model, layers[:-1]) == {
        "bytes": 4 * (stored + head.weights),
        "bops": head.macs * 32 * 32,
    }


@pytest.mark.parametrize(
    ("kind", "code", "beside"),
    [
        ("uniform", lambda b: b, lambda b, channels: 2 * channels),
        ("post", lambda b: b + 1, lambda b, channels: channels + 2**b + 1),
        ("post_strict", lambda b: b, lambda b, channels: channels + 2**b),
        ("lcq", lambda b: b, lambda b, channels: channels + 2**b - 1),
    ],
)
def test_weights_are_codes_and_what_their_grid_needs(kind, code, beside):
    own = replace(problem(tricky(), images(2), labels(2)), fit=grids.fit(kind))
    size = resource_counts.size_function(own)
    for layer in own.model.layers:
        for bits in (2, 4):
            numbers = beside(bits, layer.groups * layer.outputs)
            assert size(layer, bits) == math.ceil(layer.weights * code(bits) / 8) + 4 * numbers
            assert size(layer, bits) == size(layer, bits)


def test_weights_are_sized_where_the_grid_asks_what_they_are_worth():
    own = problem(tricky(), images(2), labels(2))
    h = {s.name: torch.ones(s.groups, s.outputs, s.inputs) for s in own.model.layers}
    weighed = replace(own, fit=grids.fit("uniform", range="hmse"), importance=h)
    assert all(
        resource_counts.size_function(weighed)(s, 3) == resource_counts.size_function(own)(s, 3)
        for s in own.model.layers
    )
