"""Every grid of `conf/grid`, at settings that tests can afford, and brute force over the values of one."""

from pathlib import Path

import torch
from omegaconf import OmegaConf

from sq.config.instantiate import build

CONF = Path(__file__).resolve().parent.parent / "conf" / "grid"
PARTS = {
    file.stem: OmegaConf.to_container(OmegaConf.load(file)) for file in sorted(CONF.glob("*.yaml"))
}
LEVELS = [name for name in PARTS if name != "uniform"]  # grids of a table
STRICT = [name for name in PARTS if "strict" in PARTS[name]]
KINDS = [*PARTS, *(f"{name}_strict" for name in STRICT)]


CHEAP = {"lcq": {"rounds": 1, "iterations": 30}}


def fit(kind, **changes):
    """Return the `fit` of a grid by name, "_strict" after it for the one with 2^bits levels, with these knobs."""
    name, _, strict = kind.partition("_")
    return build(
        PARTS[name] | CHEAP.get(name, {}) | ({"strict": True} if strict else {}) | changes, "grid"
    )


def values(grid, G, O):
    """Return all values (G, O, levels) of a grid."""
    return grid.decode(torch.arange(grid.levels, dtype=torch.int32).expand(G, O, grid.levels))


def weights(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
