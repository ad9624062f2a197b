"""Multi-head attention built from linear layers, which PyTorch's own module does not call."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Attention(nn.Module):
    """`nn.MultiheadAttention` with linear layers as its projections; same arguments and results.

    The layers get their inputs batch first, (B, L, E). If queries, keys and values are the same
    tensor, one layer projects them, `in_proj`; otherwise `q_proj`, `k_proj` and `v_proj` do.

    Parameters
    ----------
    source : the module to replace, in eval mode. A parameter that is the whole weight of a new
        layer is shared with it; others are copied
    joint : queries, keys and values are the same tensor. Different tensors still work later, at
        three times the work

    Source
    ------
    Vaswani et al. 2017, Attention Is All You Need, arXiv 1706.03762, section 3.2.
    """

    # `nn.TransformerEncoderLayer` reads these two. With these values it calls this module, instead
    # of computing with the weights directly.
    in_proj_bias = None
    _qkv_same_embed_dim = False

    def __init__(self, source: nn.MultiheadAttention, joint: bool):
        super().__init__()
        self.embed_dim = source.embed_dim
        self.num_heads = source.num_heads
        self.head_dim = source.head_dim
        self.kdim = source.kdim
        self.vdim = source.vdim
        self.batch_first = source.batch_first
        self.add_zero_attn = source.add_zero_attn
        self.dropout = source.dropout
        self.bias_k = source.bias_k
        self.bias_v = source.bias_v
        self.joint = joint and source._qkv_same_embed_dim
        bias = source.in_proj_bias
        if self.joint:
            self.in_proj = linear_layer(source.in_proj_weight, bias)
        else:
            if source._qkv_same_embed_dim:
                weights = source.in_proj_weight.split(source.embed_dim)
            else:
                weights = (source.q_proj_weight, source.k_proj_weight, source.v_proj_weight)
            biases = (None,) * 3 if bias is None else bias.split(source.embed_dim)
            self.q_proj = linear_layer(weights[0], biases[0])
            self.k_proj = linear_layer(weights[1], biases[1])
            self.v_proj = linear_layer(weights[2], biases[2])
        self.out_proj = linear_layer(source.out_proj.weight, source.out_proj.bias)
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
        """Return the outputs, and the attention weights if `need_weights`, as the original does."""
        if is_causal and attn_mask is None:
            raise RuntimeError("Need attn_mask if specifying the is_causal hint.")
        batched = query.dim() == 3
        q, k, v = self._project(query, key, value, batched)
        k, v = self._append_keys(k, v)
        mask = self._mask(attn_mask, key_padding_mask, q, k.shape[1], batched)
        q, k, v = self._split_heads(q), self._split_heads(k), self._split_heads(v)
        weights = None
        if need_weights:
            heads, weights = self._attend(q, k, v, mask)
            if average_attn_weights:
                weights = weights.mean(1)
        else:
            heads = F.scaled_dot_product_attention(q, k, v, mask, self._dropout_rate())
        outputs = self.out_proj(heads.transpose(1, 2).flatten(2))  # (B, L, E)
        if batched:
            return outputs if self.batch_first else outputs.transpose(0, 1), weights
        if weights is not None:
            weights = weights.squeeze(0)
        return outputs.squeeze(0), weights

    def _project(
        self, query: Tensor, key: Tensor, value: Tensor, batched: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries, keys and values, (B, L, E)."""
        same = query is key and key is value
        if self.joint and same:
            q, k, v = self.in_proj(self._batch_first(query, batched)).chunk(3, -1)
            return q, k, v
        if self.joint:
            q = self.in_proj(self._batch_first(query, batched)).chunk(3, -1)[0]
            k = self.in_proj(self._batch_first(key, batched)).chunk(3, -1)[1]
            v = self.in_proj(self._batch_first(value, batched)).chunk(3, -1)[2]
            return q, k, v
        # One tensor stays one tensor here: tracing recognises layers that share their input by its
        # identity.
        if same:
            query = key = value = self._batch_first(query, batched)
        else:
            query = self._batch_first(query, batched)
            key = self._batch_first(key, batched)
            value = self._batch_first(value, batched)
        return self.q_proj(query), self.k_proj(key), self.v_proj(value)

    def _batch_first(self, x: Tensor, batched: bool) -> Tensor:
        """Return the module's argument `x` as (B, L, E)."""
        if not batched:
            return x.unsqueeze(0)
        return x if self.batch_first else x.transpose(0, 1)

    def _append_keys(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Return keys and values (B, S, E) with the learned and the zero entries appended."""
        if self.bias_k is not None and self.bias_v is not None:
            k = torch.cat([k, self.bias_k.expand(len(k), -1, -1)], 1)
            v = torch.cat([v, self.bias_v.expand(len(v), -1, -1)], 1)
        if self.add_zero_attn:
            k = F.pad(k, (0, 0, 0, 1))
            v = F.pad(v, (0, 0, 0, 1))
        return k, v

    def _split_heads(self, x: Tensor) -> Tensor:
        """Return `x` (B, L, E) as (B, heads, L, E / heads)."""
        return x.unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2)

    def _attend(
        self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Return the heads' outputs (B, heads, L, E / heads) and attention weights (..., L, S)."""
        scores = (q / math.sqrt(self.head_dim)) @ k.mT
        if mask is not None:
            scores = scores + mask
        weights = F.softmax(scores, -1)
        dropout = self._dropout_rate()
        if dropout:
            weights = F.dropout(weights, dropout)
        return weights @ v, weights

    def _dropout_rate(self) -> float:
        return self.dropout if self.training else 0.0

    def _mask(
        self,
        attn_mask: Tensor | None,
        padding: Tensor | None,
        q: Tensor,
        keys: int,
        batched: bool,
    ) -> Tensor | None:
        """Return the mask that is added to the scores (B, heads, L, S); None if there is none."""
        masks = []
        if attn_mask is not None:
            mask = _additive(attn_mask, q.dtype)
            if mask.dim() != 2:  # (B * heads, L, S)
                mask = mask.unflatten(0, (-1, self.num_heads))
            masks.append(mask)
        if padding is not None:
            if not batched:
                padding = padding.unsqueeze(0)
            mask = _additive(padding, q.dtype)
            masks.append(mask[:, None, None, :])
        if not masks:
            return None
        # Keys that were appended (`bias_k`, `add_zero_attn`) are never masked.
        masks = [F.pad(mask, (0, keys - mask.shape[-1])) for mask in masks]
        return sum(masks[1:], masks[0])


def _additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a mask to add to scores: where a Boolean mask is true, minus infinity."""
    if mask.dtype != torch.bool:
        return mask
    return torch.zeros_like(mask, dtype=dtype).masked_fill(mask, -math.inf)


def linear_layer(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """Return a linear layer with this weight and bias: shared if parameters, copied otherwise."""
    # On the meta device, so that no weight is initialised only to be replaced.
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    set_parameters(layer, weight, bias)
    return layer


def set_parameters(layer: nn.Module, weight: Tensor, bias: Tensor | None) -> None:
    """Set weight and bias of a layer that was made with or without a bias accordingly."""
    layer.weight = as_parameter(weight)
    if bias is not None:
        layer.bias = as_parameter(bias)


def as_parameter(tensor: Tensor) -> nn.Parameter:
    """Return `tensor` if it is a parameter, else a parameter with a copy of it."""
    if isinstance(tensor, nn.Parameter):
        return tensor
    return nn.Parameter(tensor.detach().clone().contiguous(), requires_grad=False)
