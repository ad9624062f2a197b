"""Codec of grids and tensors: three flat tensors, and an entry that describes each item.

The three are called numbers (float32), integers (int64) and codes (uint8).
"""

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

Entry = dict[str, Any]  # plain values that describe what was put
# Other types than float32 and int64 are stored as bytes.
RAW = {
    str(dtype): dtype
    for dtype in (
        torch.float64,
        torch.float16,
        torch.bfloat16,
        torch.bool,
        torch.uint8,
        torch.int8,
        torch.int16,
        torch.int32,
    )
}
MAX_BITS = 17  # of a code: a grid has up to 2^16 + 1 levels


class Writer:
    """Puts items one after the other; a `Reader` takes them in the same order, by their entries."""

    def __init__(self) -> None:
        self.parts: dict[str, list[Tensor]] = {"numbers": [], "integers": [], "codes": []}

    def tensors(self) -> dict[str, Tensor]:
        """Return all that was put, by kind."""
        return {kind: torch.cat(parts) for kind, parts in self.parts.items() if parts}

    def put(self, tensor: Tensor, what: str) -> Entry:
        """Put a tensor.

        Raises
        ------
        SqError : its type cannot be stored: quantized, complex
        """
        shape, dtype = list(tensor.shape), str(tensor.dtype)
        kind = {torch.float32: "numbers", torch.int64: "integers"}.get(tensor.dtype)
        if kind is None and dtype not in RAW:
            raise SqError(
                f"{what} is of {dtype}, which export=packed cannot hold: choose another model"
            )
        flat = tensor.detach().cpu().contiguous().flatten()
        if kind is None:
            self.parts["codes"].append(flat.view(torch.uint8))
            return {"shape": shape, "kind": dtype}
        self.parts[kind].append(flat)
        return {"shape": shape, "kind": kind}

    def put_codes(self, codes: Tensor, width: int) -> Entry:
        """Put codes of `width` bits."""
        self.parts["codes"].append(bit_packing.pack(codes.cpu(), width))
        return {"shape": list(codes.shape), "bits": width}

    def put_grid(self, grid: Grid | AdaptiveGrid, what: str) -> Entry:
        """Put the tensors of a grid.

        Raises
        ------
        SqError : this kind of grid cannot be stored
        """
        if isinstance(grid, AdaptiveGrid):
            return self._put_adaptive(grid, what)
        if isinstance(grid, UniformGrid):
            return self._put_uniform(grid, what)
        if isinstance(grid, LevelGrid):
            return {
                "grid": "levels",
                "scale": self.put(grid.scale, what),
                "table": self.put(grid.table, what),
            }
        raise SqError(
            f"{what} has a {type(grid).__name__}, which export=packed cannot hold: choose another "
            "grid"
        )

    def _put_adaptive(self, grid: AdaptiveGrid, what: str) -> Entry:
        adapter = grid.adapter
        learned = [self.put(tensor, what) for tensor in adapter.state_dict().values()]
        return {
            "grid": "adaptive",
            "channels": (adapter.squeeze or adapter.last).in_features,
            "axis": adapter.axis,
            "learned": learned,
            "inner": self.put_grid(grid.grid, what),
        }

    def _put_uniform(self, grid: UniformGrid, what: str) -> Entry:
        # The order of these calls is the order in the file.
        low = self._put_low(grid.low, grid)
        every_code_has_a_value = torch.equal(grid.high, grid.low + (grid.levels - 1))
        high = None if every_code_has_a_value else self.put(grid.high, what)
        scale = self.put(grid.scale, what)
        return {"grid": "uniform", "levels": grid.levels, "scale": scale, "low": low, "high": high}

    def _put_low(self, low: Tensor, grid: UniformGrid) -> Entry | float:
        """Put the lowest unit of each channel: as one number, as codes, or as float32."""
        if low.numel() and bool((low == low.flatten()[0]).all()):
            return float(low.flatten()[0])
        is_code = (low <= 0) & (low > -grid.levels) & (low == low.round())
        if bool(is_code.all()):
            return self.put_codes((-low).to(torch.int32), code_bits(grid))
        return self.put(low, "a zero point")


class Reader:
    """Takes what a `Writer` has put, in the same order."""

    def __init__(self, tensors: Mapping[str, Tensor]):
        self.tensors = tensors
        self.positions = {"numbers": 0, "integers": 0, "codes": 0}

    def _next(self, kind: str, count: int) -> Tensor:
        start = self.positions[kind]
        self.positions[kind] = start + count
        part = self.tensors.get(kind, torch.empty(0))[start : start + count]
        if count < 0 or len(part) != count:
            raise ValueError(f"its {kind} end early")
        return part

    def take(self, entry: Entry) -> Tensor:
        """Return the tensor of an entry."""
        kind, shape = entry["kind"], entry["shape"]
        count = math.prod(shape)
        if kind in RAW:
            dtype = RAW[kind]
            data = self._next("codes", count * dtype.itemsize)
            return data.clone().view(dtype).view(shape)  # a copy is aligned for any type
        return self._next(kind, count).view(shape).clone()

    def take_codes(self, entry: Entry) -> Tensor:
        """Return the codes int32 of an entry."""
        count, bits = math.prod(entry["shape"]), entry["bits"]
        if not 1 <= bits <= MAX_BITS:
            raise ValueError(f"codes of {bits} bits")
        data = self._next("codes", -(-count * bits // 8))
        return bit_packing.unpack(data, bits, count).view(entry["shape"])

    def take_grid(self, entry: Entry) -> Grid | AdaptiveGrid:
        """Return the grid of an entry."""
        if entry["grid"] == "adaptive":
            return self._take_adaptive(entry)
        if entry["grid"] == "uniform":
            return self._take_uniform(entry)
        return LevelGrid(self.take(entry["scale"]), self.take(entry["table"]))

    def _take_adaptive(self, entry: Entry) -> AdaptiveGrid:
        # Before the adapter is built: a forged number of channels could take all memory.
        if entry["channels"] > sum(math.prod(learned["shape"]) for learned in entry["learned"]):
            raise ValueError("an adapter has fewer numbers than channels")
        adapter = Adapter(entry["channels"], 0, entry["axis"])
        state: dict[str, Tensor] = {}
        for name, learned in zip(adapter.state_dict(), entry["learned"], strict=True):
            state[name] = self.take(learned)
        adapter.load_state_dict(state)
        grid = self.take_grid(entry["inner"])
        assert isinstance(grid, UniformGrid)
        return AdaptiveGrid(grid, adapter.requires_grad_(False))

    def _take_uniform(self, entry: Entry) -> UniformGrid:
        low = self._take_low(entry["low"])
        high = self.take(entry["high"]) if entry["high"] else None
        scale, levels = self.take(entry["scale"]), entry["levels"]
        low = low.expand_as(scale).clone()
        if high is None:  # every code has a value
            high = low + (levels - 1)
        return UniformGrid(scale, low, high, levels)

    def _take_low(self, entry: Entry | float) -> Tensor:
        if not isinstance(entry, dict):
            return torch.tensor(float(entry))
        if "kind" in entry:
            return self.take(entry)
        return -self.take_codes(entry).float()
