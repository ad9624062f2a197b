"""Grids and tensors in three flat tensors and a few words: numbers (float32), integers (int64) and codes (uint8)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from sq.errors import SqError
from sq.export import bit_packing
from sq.grid.level_grid import LevelGrid
from sq.grid.uniform_grid import UniformGrid
from sq.learning.adaptive_step import Adapter, AdaptiveGrid
from sq.network.resource_counts import code_bits
from sq.types.problem import Grid

Words = dict[str, Any]
# What else networks hold beside float32 and int64, as the bytes it is.
RAW = {
    str(kind): kind
    for kind in (torch.float64, torch.float16, torch.bfloat16, torch.bool, torch.uint8)
} | {str(kind): kind for kind in (torch.int8, torch.int16, torch.int32)}
WIDEST = 17  # bits of a code: a grid has up to 2^16 + 1 levels


class Writer:
    """Puts one thing after the other; what it returns tells a `Reader`, who must ask in the same order, what it is."""

    def __init__(self) -> None:
        self.parts: dict[str, list[Tensor]] = {"numbers": [], "integers": [], "codes": []}

    def tensors(self) -> dict[str, Tensor]:
        """Return all that was put, by kind."""
        return {kind: torch.cat(own) for kind, own in self.parts.items() if own}

    def put(self, tensor: Tensor, what: str) -> Words:
        """Put numbers.

        Raises
        ------
        SqError : numbers of a type that has no bytes of its own: quantized, complex
        """
        if str(tensor.dtype) in RAW:
            self.parts["codes"].append(
                tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
            )
            return {"shape": list(tensor.shape), "kind": str(tensor.dtype)}
        kind = {torch.float32: "numbers", torch.int64: "integers"}.get(tensor.dtype)
        if kind is None:
            raise SqError(
                f"{what} is of {tensor.dtype}, which export=packed cannot hold: choose another model"
            )
        self.parts[kind].append(tensor.detach().cpu().flatten())
        return {"shape": list(tensor.shape), "kind": kind}

    def put_codes(self, codes: Tensor, width: int) -> Words:
        """Put codes of `width` bits."""
        self.parts["codes"].append(bit_packing.pack(codes.cpu(), width))
        return {"shape": list(codes.shape), "bits": width}

    def put_grid(self, grid: Grid | AdaptiveGrid, what: str) -> Words:
        """Put what describes a grid.

        Raises
        ------
        SqError : a kind of grid that is not known here
        """
        if isinstance(grid, AdaptiveGrid):
            adapter = grid.adapter
            learned = [self.put(own, what) for own in adapter.state_dict().values()]
            width = (adapter.squeeze or adapter.last).in_features
            inner = self.put_grid(grid.grid, what)
            return {
                "grid": "adaptive",
                "channels": width,
                "axis": adapter.axis,
                "learned": learned,
                "inner": inner,
            }
        if isinstance(grid, UniformGrid):
            whole = torch.equal(grid.high, grid.low + (grid.levels - 1))  # every code has a value
            ends = {
                "low": self._end(grid.low, grid),
                "high": None if whole else self.put(grid.high, what),
            }
            return {
                "grid": "uniform",
                "levels": grid.levels,
                "scale": self.put(grid.scale, what),
            } | ends
        if isinstance(grid, LevelGrid):
            return {
                "grid": "levels",
                "scale": self.put(grid.scale, what),
                "table": self.put(grid.table, what),
            }
        raise SqError(
            f"{what} has a {type(grid).__name__}, which export=packed cannot hold: choose another grid"
        )

    def _end(self, low: Tensor, grid: UniformGrid) -> Words | float:
        """Put the lowest unit of each channel: as one word, or in the bits of a code, or as numbers."""
        if low.numel() and bool((low == low.flatten()[0]).all()):
            return float(low.flatten()[0])
        if bool(((low <= 0) & (low > -grid.levels) & (low == low.round())).all()):
            return self.put_codes((-low).to(torch.int32), code_bits(grid))
        return self.put(low, "a zero point")


class Reader:
    """Takes what a `Writer` put, in the same order."""

    def __init__(self, tensors: Mapping[str, Tensor]):
        self.tensors, self.at = tensors, dict.fromkeys(("numbers", "integers", "codes"), 0)

    def _next(self, kind: str, count: int) -> Tensor:
        start = self.at[kind]
        self.at[kind] = start + count
        own = self.tensors.get(kind, torch.empty(0))[start : start + count]
        if count < 0 or len(own) != count:
            raise ValueError(f"its {kind} end early")
        return own

    def take(self, words: Words) -> Tensor:
        """Return numbers that were put."""
        if (raw := RAW.get(words["kind"])) is not None:
            data = self._next("codes", math.prod(words["shape"]) * raw.itemsize)
            return data.clone().view(raw).view(words["shape"])
        return self._next(words["kind"], math.prod(words["shape"])).view(words["shape"]).clone()

    def take_codes(self, words: Words) -> Tensor:
        """Return codes int32 that were put."""
        count, width = math.prod(words["shape"]), words["bits"]
        if not 1 <= width <= WIDEST:
            raise ValueError(f"codes of {width} bits")
        return bit_packing.unpack(self._next("codes", -(-count * width // 8)), width, count).view(
            words["shape"]
        )

    def take_grid(self, words: Words) -> Grid | AdaptiveGrid:
        """Return a grid that was put."""
        if words["grid"] == "adaptive":
            if words["channels"] > sum(math.prod(own["shape"]) for own in words["learned"]):
                raise ValueError("an adapter has fewer numbers than channels")
            adapter = Adapter(words["channels"], 0, words["axis"])
            names = adapter.state_dict()
            adapter.load_state_dict(
                {n: self.take(own) for n, own in zip(names, words["learned"], strict=True)}
            )
            inner = self.take_grid(words["inner"])
            assert isinstance(inner, UniformGrid)
            return AdaptiveGrid(inner, adapter.requires_grad_(False))
        if words["grid"] == "uniform":
            low, high = self._end(words["low"]), words["high"] and self.take(words["high"])
            scale, levels = self.take(words["scale"]), words["levels"]
            low = low.expand_as(scale).clone()
            return UniformGrid(scale, low, low + (levels - 1) if high is None else high, levels)
        return LevelGrid(self.take(words["scale"]), self.take(words["table"]))

    def _end(self, words: Words | float) -> Tensor:
        if isinstance(words, dict):
            return self.take(words) if "kind" in words else -self.take_codes(words).float()
        return torch.tensor(float(words))
