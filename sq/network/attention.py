"""Multi-head attention made of plain linear layers; PyTorch's own calls no layer."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Attention(nn.Module):
    """`nn.MultiheadAttention` with its projections as linear layers; takes and returns the same.

    The layers get their inputs batch first, (B, L, E). Queries, keys and values that are one tensor
    are projected by one layer, `in_proj`; others by `q_proj`, `k_proj` and `v_proj`.

    Parameters
    ----------
    source : in eval mode; its parameters are shared where they are whole weights of the new layers,
        else copied
    joint : queries, keys and values are one tensor; they may still be others later, at three times
        the work

    Source
    ------
    Vaswani et al. 2017, Attention Is All You Need, arXiv 1706.03762, section 3.2.
    """

    # `nn.TransformerEncoderLayer` reads these before it computes with weights directly, without
    # calling a layer.
    in_proj_bias = None
    _qkv_same_embed_dim = False

    def __init__(self, source: nn.MultiheadAttention, joint: bool):
        super().__init__()
        self.embed_dim, self.num_heads, self.head_dim = (
            source.embed_dim,
            source.num_heads,
            source.head_dim,
        )
        self.kdim, self.vdim = source.kdim, source.vdim
        self.batch_first, self.add_zero_attn = source.batch_first, source.add_zero_attn
        self.dropout = source.dropout
        self.bias_k, self.bias_v = source.bias_k, source.bias_v
        self.joint = joint and source._qkv_same_embed_dim
        size, bias = source.embed_dim, source.in_proj_bias
        if self.joint:
            self.in_proj = linear(source.in_proj_weight, bias)
        else:
            weights = (source.q_proj_weight, source.k_proj_weight, source.v_proj_weight)
            if source._qkv_same_embed_dim:
                weights = source.in_proj_weight.split(size)
            biases = (None,) * 3 if bias is None else bias.split(size)
            self.q_proj, self.k_proj, self.v_proj = map(linear, weights, biases)
        self.out_proj = linear(source.out_proj.weight, source.out_proj.bias)
        self.train(source.training)

    def forward(  # noqa: PLR0913 (as `nn.MultiheadAttention` has them)
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Return outputs, and weights of attention if `need_weights`, as `nn.MultiheadAttention`."""
        if is_causal and attn_mask is None:
            raise RuntimeError("Need attn_mask if specifying the is_causal hint.")
        batched = query.dim() == 3
        q, k, v = self._project(query, key, value, batched)
        if self.bias_k is not None and self.bias_v is not None:
            k, v = (
                torch.cat([x, b.expand(len(x), -1, -1)], 1)
                for x, b in ((k, self.bias_k), (v, self.bias_v))
            )
        if self.add_zero_attn:
            k, v = (F.pad(x, (0, 0, 0, 1)) for x in (k, v))
        mask = self._mask(attn_mask, key_padding_mask, q, k.shape[1], batched)
        # (B, L, E) -> (B, heads, L, E / heads)
        q, k, v = (
            x.unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2) for x in (q, k, v)
        )
        weights = None
        dropout = self.dropout if self.training else 0.0
        if need_weights:
            scores = (q / math.sqrt(self.head_dim)) @ k.mT
            weights = F.softmax(scores if mask is None else scores + mask, -1)
            weights = F.dropout(weights, dropout) if dropout else weights
            heads = weights @ v
            weights = weights.mean(1) if average_attn_weights else weights
        else:
            heads = F.scaled_dot_product_attention(q, k, v, mask, dropout)
        outputs = self.out_proj(heads.transpose(1, 2).flatten(2))
        if not batched:
            return outputs.squeeze(0), None if weights is None else weights.squeeze(0)
        return (outputs if self.batch_first else outputs.transpose(0, 1)), weights

    def _project(
        self, query: Tensor, key: Tensor, value: Tensor, batched: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries, keys and values, (B, L, E)."""
        one = query is key and key is value

        def first(x: Tensor) -> Tensor:
            return x.unsqueeze(0) if not batched else x if self.batch_first else x.transpose(0, 1)

        if not self.joint:
            # One tensor for all that were one, so that layers with the same inputs can be told.
            query, key, value = (
                (first(query),) * 3 if one else (first(query), first(key), first(value))
            )
            return self.q_proj(query), self.k_proj(key), self.v_proj(value)
        if one:
            q, k, v = self.in_proj(first(query)).chunk(3, -1)
            return q, k, v
        q, k, v = (
            self.in_proj(first(x)).chunk(3, -1)[i] for i, x in enumerate((query, key, value))
        )
        return q, k, v

    def _mask(
        self,
        attn_mask: Tensor | None,
        padding: Tensor | None,
        q: Tensor,
        length: int,
        batched: bool,
    ) -> Tensor | None:
        """Return what is added to the scores (B, heads, L, S), None for nothing."""
        masks = []
        if attn_mask is not None:
            mask = _added(attn_mask, q.dtype)
            masks.append(mask if mask.dim() == 2 else mask.unflatten(0, (-1, self.num_heads)))
        if padding is not None:
            mask = _added(padding if batched else padding.unsqueeze(0), q.dtype)
            masks.append(mask[:, None, None, :])
        # Keys that were appended (`bias_k`, `add_zero_attn`) are never masked.
        masks = [F.pad(mask, (0, length - mask.shape[-1])) for mask in masks]
        return sum(masks[1:], masks[0]) if masks else None


def _added(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a mask as numbers to add: minus infinity where a Boolean one is true."""
    if mask.dtype != torch.bool:
        return mask
    return torch.zeros_like(mask, dtype=dtype).masked_fill(mask, -math.inf)


def linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """Return a linear layer that computes with these: shared if parameters, else copied."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    layer.weight = parameter(weight)
    layer._parameters["bias"] = None if bias is None else parameter(bias)
    return layer


def parameter(tensor: Tensor) -> nn.Parameter:
    """Return `tensor` if it is a parameter, else a parameter with a copy of it."""
    if isinstance(tensor, nn.Parameter):
        return tensor
    return nn.Parameter(tensor.detach().clone().contiguous(), requires_grad=False)
