"""What every choice of `activation` keeps to; a new one is tested by its YAML alone."""

import inspect
from pathlib import Path

import pytest
import torch
from cli_helpers import compose
from tolerances import assert_within, relative
from torch import nn

from sq.activation import insertion
from sq.config.instantiate import build
from sq.errors import SqError

CONF = Path(__file__).resolve().parents[2] / "conf" / "activation"
PARTS = {
    path.stem: compose(f"activation={path.stem}")[0]["activation"]
    for path in sorted(CONF.glob("*.yaml"))
}
FITS = {name: part for name, part in PARTS.items() if "fit" in part}
INPUTS = [
    "normal",
    "relu",
    "relu6",
    "silu",
    "negative",
    "shifted",
    "constant",
    "negative constant",
    "zero",
]


def fitting(name, **changes):
    return build(FITS[name]["fit"] | changes, "activation.fit")


def signed(x, symmetric):
    return symmetric and float(x.min()) < 0


@pytest.mark.parametrize("kind", INPUTS)
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("name", FITS)
def test_grid(see, inputs, name, symmetric, kind):
    x = inputs[kind]
    seen = see(x)
    fit = fitting(name, symmetric=symmetric)
    for bits in (2, 3, 8):
        grid = fit(seen, bits)
        assert grid.levels == 2**bits
        assert grid.scale.ndim == grid.low.ndim == grid.high.ndim == 0
        assert grid.scale.dtype == torch.float32
        assert torch.isfinite(grid.scale)
        assert grid.scale > 0
        assert grid.nearest(torch.zeros(1)).item() == 0
        low, high = (float(end) for end in (grid.low, grid.high))
        assert low <= 0 <= high
        assert low == round(low)
        assert high - low == 2**bits - 1
        if signed(x, symmetric):
            assert low == -(2 ** (bits - 1))
        elif symmetric or float(x.min()) >= 0:
            assert low == 0
        reach = max(-float(x.min()), float(x.max()), 1e-30)
        # no wider than what was seen
        assert grid.scale * (2**bits - 1) <= max(2 * reach, 1) * (1 + 1e-5)
        for values in (x, x.view(-1, 5, 2), x.view(-1, 5, 2, 1), x.double()):
            assert grid.nearest(values).shape == values.shape
            assert grid.nearest(values).dtype == values.dtype


@pytest.mark.parametrize("kind", ["constant", "negative constant", "zero"])
@pytest.mark.parametrize("name", FITS)
def test_equal_values_are_exact_on_an_affine_grid(see, inputs, name, kind):
    x = inputs[kind]
    for bits in (1, 4, 8):
        assert_within(fitting(name)(see(x), bits).nearest(x), x, relative(2, x.dtype) * x.abs())


@pytest.mark.parametrize("name", FITS)
def test_bits(see, inputs, name):
    seen = see(inputs["normal"], bins=2**16)
    positive = see(inputs["relu"], bins=2**16)
    for bits in (0, -1, 17, 32):
        with pytest.raises(SqError, match=rf"^{bits} bits.*takes 1 to 16"):
            fitting(name, symmetric=False)(seen, bits)
    with pytest.raises(SqError, match=r"^1 bit:.*signed.*takes 2 to 16"):
        fitting(name, symmetric=True)(seen, 1)
    assert fitting(name, symmetric=True)(positive, 1).levels == 2
    assert fitting(name, symmetric=False)(seen, 1).levels == 2


@pytest.mark.parametrize("name", FITS)
def test_more_bits_err_less(see, inputs, name):
    for kind in ("normal", "relu", "silu", "shifted"):
        x = inputs[kind]
        errors = [
            float((x - fitting(name)(see(x), bits).nearest(x)).square().sum()) for bits in (2, 4, 6)
        ]
        assert errors[0] > errors[1] > errors[2], kind


@pytest.mark.parametrize("name", FITS)
def test_scale_of_the_values_does_not_matter(see, inputs, name):
    x = inputs["silu"]
    one, other = (fitting(name)(see(factor * x), 5) for factor in (1, 2.0**20))
    assert float(other.scale) == pytest.approx(
        float(one.scale * 2**20), rel=relative(2, torch.float32)
    )
    assert torch.equal(other.low, one.low)


@pytest.mark.parametrize("name", PARTS)
def test_from_yaml_to_a_network(name):
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(64, 3)
    ).eval()
    net.requires_grad_(False)
    x = torch.randn(40, 1, 8, 8)
    plain = net(x)
    quantize = build(PARTS[name], "activation")
    grids = quantize(net, ["0", "2", "4"], x, {"0": 0}).grids()
    assert list(grids) == ([] if name == "none" else ["2", "4"])
    insertion.attach(net, grids)
    error = float((net(x) - plain).norm() / plain.norm())
    assert error == 0 if name == "none" else 0 < error < 0.1
    insertion.detach(net)
    assert torch.equal(net(x), plain)


def test_knobs_of_all_choices_but_none_are_alike():
    alike = [{k: v for k, v in part.items() if k != "fit"} for part in FITS.values()]
    assert all(part == alike[0] for part in alike)
    assert PARTS.keys() - FITS.keys() == {"none"}
    knobs = inspect.signature(insertion.quantize).parameters.values()
    assert {p.name for p in knobs if p.kind is p.KEYWORD_ONLY} == {"bits", "observe", "fit"}
