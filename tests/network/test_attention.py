"""Attention made of linear layers, against PyTorch's own."""

import itertools

import pytest
import torch
from tolerances import assert_near, of_layers
from torch import nn

from sq.network.attention import Attention

SIZE, HEADS, BATCH, LENGTH = 8, 2, 3, 5


@pytest.fixture(autouse=True)
def double():
    """Both add in another order: in float64 that is no more than 1e-14."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def compared(source, *args, **named):
    source = source.eval()
    with torch.no_grad():
        for joint in (False, True):
            own = Attention(source, joint)
            outputs, weights = own(*args, **named)
            wanted, wanted_weights = source(*args, **named)
            rounding = of_layers(source, torch.float64)
            assert_near(outputs, wanted, rounding)
            if wanted_weights is None:
                assert weights is None
            else:
                assert_near(weights, wanted_weights, rounding)
    return own


def attention(**settings):
    torch.manual_seed(0)
    source = nn.MultiheadAttention(SIZE, HEADS, **settings)
    for parameter in source.parameters():
        nn.init.normal_(parameter)
    return source


@pytest.mark.parametrize(
    ("batch_first", "bias", "need_weights", "average", "extra"),
    list(
        itertools.product(*[(False, True)] * 4, ({}, {"add_bias_kv": True, "add_zero_attn": True}))
    ),
)
def test_every_setting(batch_first, bias, need_weights, average, extra):
    source = attention(batch_first=batch_first, bias=bias, **extra)
    x = torch.randn(BATCH, LENGTH, SIZE)
    compared(source, x, x, x, need_weights=need_weights, average_attn_weights=average)


@pytest.mark.parametrize("need_weights", [False, True])
@pytest.mark.parametrize("batch_first", [False, True])
def test_masks(need_weights, batch_first):
    source = attention(batch_first=batch_first)
    x = torch.randn(BATCH, LENGTH, SIZE)
    x = x if batch_first else x.transpose(0, 1)
    padding = torch.zeros(BATCH, LENGTH, dtype=torch.bool)
    padding[1, 3:] = True
    causal = nn.Transformer.generate_square_subsequent_mask(LENGTH)
    for masks in (
        {"key_padding_mask": padding},
        {"attn_mask": causal},
        {"attn_mask": causal, "is_causal": True},
        {"attn_mask": causal.bool()},
        {"attn_mask": torch.randn(BATCH * HEADS, LENGTH, LENGTH)},
        {"attn_mask": torch.randn(LENGTH, LENGTH), "key_padding_mask": torch.randn(BATCH, LENGTH)},
    ):
        compared(source, x, x, x, need_weights=need_weights, **masks)


@pytest.mark.parametrize("need_weights", [False, True])
def test_masks_do_not_reach_appended_keys(need_weights):
    source = attention(add_bias_kv=True, add_zero_attn=True, batch_first=True)
    x = torch.randn(BATCH, LENGTH, SIZE)
    padding = torch.zeros(BATCH, LENGTH, dtype=torch.bool)
    padding[:, 2:] = True
    compared(source, x, x, x, need_weights=need_weights, key_padding_mask=padding)


@pytest.mark.parametrize("batch_first", [False, True])
def test_keys_and_values_of_their_own(batch_first):
    source = attention(batch_first=batch_first, kdim=6, vdim=4)
    shapes = [(BATCH, LENGTH, SIZE), (BATCH, 7, 6), (BATCH, 7, 4)]
    query, key, value = (
        torch.randn(s) if batch_first else torch.randn(s).transpose(0, 1) for s in shapes
    )
    own = compared(source, query, key, value)
    assert {name for name, _ in own.named_children()} == {"q_proj", "k_proj", "v_proj", "out_proj"}


def test_queries_of_their_own():
    source = attention(batch_first=True)
    memory = torch.randn(BATCH, 7, SIZE)
    compared(source, torch.randn(BATCH, LENGTH, SIZE), memory, memory)


def test_one_sequence_without_a_batch():
    source = attention()
    x = torch.randn(LENGTH, SIZE)
    compared(source, x, x, x)
    compared(source, x, x, x, need_weights=False, key_padding_mask=torch.arange(LENGTH) > 3)


def test_layers_see_the_batch_first():
    source = attention(batch_first=False)
    own = Attention(source, True)
    seen = []
    own.in_proj.register_forward_pre_hook(lambda module, args: seen.append(args[0].shape))
    x = torch.randn(LENGTH, BATCH, SIZE)
    own(x, x, x)
    assert seen == [(BATCH, LENGTH, SIZE)]
    assert own.in_proj.weight is source.in_proj_weight
