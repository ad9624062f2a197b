"""How many images go through a network at a time, and how they lie in memory."""

import torch

from sq.runtime import batching


def test_images_of_a_pass_suit_their_size():
    assert batching.images_per_pass((3, 224, 224), 7) == 7
    assert batching.images_per_pass((1, 8, 8), None) == 256
    assert 16 <= batching.images_per_pass((3, 224, 224), None) <= 64
    assert batching.images_per_pass((3, 5000, 5000), None) == 1
    x = torch.zeros(600, 1, 8, 8)
    assert [len(part) for part in batching.split(x, None)] == [256, 256, 88]


def test_images_lie_channels_last_and_keep_their_values():
    x = torch.randn(2, 3, 4, 5)
    moved = batching.to_device(x, torch.device("cpu"))
    assert torch.equal(moved, x)
    assert moved.is_contiguous(memory_format=torch.channels_last)
    tokens = torch.randn(2, 7, 5)
    assert torch.equal(batching.to_device(tokens, torch.device("cpu")), tokens)
