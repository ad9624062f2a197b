"""Arithmetic on measurements, done by hand."""

import pytest

from sq.bench.measure import extrapolated
from sq.report import benchmark_summary


def measured(layer, quantizer, seconds, **more):
    own = {
        "layer": layer,
        "quantizer": quantizer,
        "choice": quantizer,
        "seconds": seconds,
        "bits": 4,
        "count": 1,
    }
    own |= {
        "groups": 1,
        "outputs": 8,
        "inputs": 16,
        "extrapolated": False,
        "fit_seconds": 0.5,
        "errors": {"8": 0.1},
    }
    return own | more


SIZES = [(r, c) for r in (16, 64, 256) for c in (64, 256, 1024)]


@pytest.mark.parametrize(("a", "b"), [(1.0, 3.0), (0.0, 2.0), (0.37, 2.6)])
def test_power_law_recovers_known_exponents(a, b):
    assert benchmark_summary.power_law(
        SIZES, [3e-9 * r**a * c**b for r, c in SIZES]
    ) == pytest.approx((a, b), abs=1e-9)


def test_power_law_leaves_out_what_layers_do_not_tell():
    rows, columns = benchmark_summary.power_law(
        [(8, c) for c in (2, 4, 8)], [c**2.5 for c in (2, 4, 8)]
    )
    assert rows is None
    assert columns == pytest.approx(2.5)
    assert benchmark_summary.power_law([(8, 8)], [1.0]) == (None, None)
    assert benchmark_summary.power_law([(8, 8), (16, 16), (32, 32)], [1.0, 2.0, 4.0]) == (
        None,
        None,
    )
    assert benchmark_summary.power_law([], []) == (None, None)
    assert benchmark_summary.power_law(SIZES, [0.0] * len(SIZES)) == (None, None)


def test_exponents_stand_beside_those_of_the_operations():
    found = [measured(f"{r}x{c}", "obq", 1e-9 * r * c**3, outputs=r, inputs=c) for r, c in SIZES]
    found += [
        measured(f"{r}x{c}", "gptq", 1e-9 * r * c**2, outputs=r, inputs=c, bits=3) for r, c in SIZES
    ]
    found += [
        measured("grouped", "obq", 1e9, groups=2),
        measured("grouped", "gptq", 1e9, groups=2, bits=3),
    ]
    obq, gptq = benchmark_summary.exponents(found)
    assert (obq["layers"], obq["rows"], obq["columns"]) == (9, pytest.approx(1), pytest.approx(3))
    assert (obq["rows_expected"], obq["columns_expected"]) == (pytest.approx(1), pytest.approx(3))
    assert (gptq["rows"], gptq["columns"]) == (pytest.approx(1), pytest.approx(2))
    assert 0 < gptq["rows_expected"] < 1
    assert 2 < gptq["columns_expected"] < 3


def test_totals_count_shapes_as_often_as_the_network_has_them():
    found = [
        measured("a", "obq", 10.0, count=3, errors={"8": 0.2}),
        measured("a", "gptq", 1.0, count=3, errors={"8": 0.4}),
        measured("b", "obq", 30.0, extrapolated=True, errors={"4": 0.1}),
        measured("b", "gptq", 2.0, errors={"4": 0.1 * 16, "8": 0.7}),
    ]
    obq, gptq = benchmark_summary.totals(found, "obq")
    assert (obq["layers"], obq["seconds"], obq["extrapolated_seconds"], obq["speedup"]) == (
        4,
        60.0,
        30.0,
        1.0,
    )
    assert (gptq["seconds"], gptq["speedup"], gptq["fit_seconds"]) == (5.0, 12.0, 2.0)
    assert obq["error_ratio"] == pytest.approx(1)
    # geometric: three layers twice, one 16 times, of the rows that both have solved
    assert gptq["error_ratio"] == pytest.approx((2**3 * 16) ** (1 / 4))
    assert gptq["relative_error"] == pytest.approx((0.4**3 * 0.7) ** (1 / 4))


def test_errors_compare_on_shared_rows_only():
    one = measured("a", "x", 1.0, errors={"4": 0.3, "8": 0.9})
    assert benchmark_summary.error(one) == 0.9
    assert benchmark_summary.error_ratio(
        one, measured("a", "y", 1.0, errors={"4": 0.1})
    ) == pytest.approx(3)
    assert benchmark_summary.error_ratio(one, measured("a", "y", 1.0, errors={"16": 0.1})) is None
    assert benchmark_summary.error_ratio(one, measured("a", "y", 1.0, errors={"8": 0.0})) is None


def test_extrapolation_counts_what_is_done_once_once():
    # 2 s for the inverse, 0.5 s a row
    assert extrapolated((16, 10.0), (8, 6.0), 512) == pytest.approx(2 + 0.5 * 512)
    assert extrapolated((16, 10.0), (8, 6.0), 16) == 10.0
    assert extrapolated((16, 5.0), (8, 6.0), 512) == 5.0
