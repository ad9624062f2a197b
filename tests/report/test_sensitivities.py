"""Prices of bits: averaged over calibrations alone, never over grids, which set them."""

import statistics

import pytest
from report_pages import RESULTS
from test_table import record

from sq.records import record as records
from sq.report import figure, sensitivities, style
from sq.report.slim import Slim

MSE, MINMAX = {"range": "mse", "steps": 8}, {"range": "minmax", "steps": 8}


def priced(cost, **more):
    return record(**more) | {"sensitivity": {"a": {"2": cost, "10": cost / 2}}}


def test_the_mean_is_over_distinct_statistics_and_bits_sort_as_numbers():
    one, two = record(), record(seed=1, statistics="s1")
    two["sensitivity"] = {"a": {"2": 0.4, "10": 0.3}, "b": {"2": 0.8, "10": 0.5}}
    mean = sensitivities.tables([one, record("gptq"), two])["digits_resnet"]
    assert list(mean.columns) == ["2", "10"]
    assert mean.loc["a", "2"] == pytest.approx(0.3)


def test_a_layer_that_some_runs_leave_out_has_the_mean_of_the_others():
    two = record(seed=1, statistics="s1") | {"sensitivity": {"b": {"2": 0.8, "10": 0.5}}}
    mean = sensitivities.tables([record(), two])["digits_resnet"]
    assert list(mean["2"]) == pytest.approx([0.2, 0.6])
    assert list(mean.index) == ["a", "b"]


@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize("kept", ["whole", "slim"])
def test_each_grid_has_a_table_whichever_key_is_lowest(order, kept):
    keep = Slim() if kept == "slim" else lambda r: r
    made = [
        priced(0.1, grid=MSE),
        priced(0.3, grid=MSE, seed=1, statistics="s1"),
        priced(0.8, grid=MINMAX),
        priced(0.9, grid=MINMAX, quantizer="obq"),  # priced already
    ]
    found = sensitivities.tables([keep(one) for one in made[::order]])
    assert set(found) == {"digits_resnet range=mse", "digits_resnet range=minmax"}
    assert found["digits_resnet range=mse"].loc["a", "2"] == pytest.approx(0.2)
    assert found["digits_resnet range=minmax"].loc["a", "2"] == (0.8 if order == 1 else 0.9)


def test_ways_of_pricing_and_networks_of_one_choice_are_apart():
    ours, theirs = (
        {"_target_": f"sq.sensitivity.{name}.score"} for name in ("output_error", "hessian")
    )
    assert set(
        sensitivities.tables([priced(0.1, sensitivity=ours), priced(0.2, sensitivity=theirs)])
    ) == {
        "digits_resnet sensitivity=output_error",
        "digits_resnet sensitivity=hessian",
    }
    two = [
        priced(0.1, model={"name": name, "expected": {name: 1}}, statistics=name)
        for name in ("r18", "r34")
    ]
    assert set(sensitivities.tables(two)) == {"digits_resnet name=r18", "digits_resnet name=r34"}
    gates = [
        priced(0.1, model={"expected": {"top1": top1}}, statistics=str(top1)) for top1 in (1, 2)
    ]
    assert set(sensitivities.tables(gates)) == {"digits_resnet"}


def test_knobs_of_another_choice_do_not_tell_tables_apart():
    kl = {"_target_": "sq.sensitivity.kl.score", "images": 8}
    noise = [
        {"_target_": "sq.sensitivity.noise.score", "images": 16, "tolerance": own}
        for own in (0.1, 0.05)
    ]
    found = sensitivities.tables(
        [
            priced(cost, sensitivity=own)
            for cost, own in zip((0.1, 0.2, 0.3), (kl, *noise), strict=True)
        ]
    )
    assert set(found) == {
        "digits_resnet sensitivity=kl",
        "digits_resnet sensitivity=noise tolerance=0.1",
        "digits_resnet sensitivity=noise tolerance=0.05",
    }


def test_names_with_a_point_keep_it_in_figures(tmp_path):
    frame = sensitivities.tables([priced(0.1)])["digits_resnet"]
    files = style.save(figure.heat(frame, "x"), tmp_path / "tolerance_0.1")
    assert [file.name for file in files] == ["tolerance_0.1.svg", "tolerance_0.1.pdf"]


def test_images_that_are_made_have_a_table_of_their_own_and_their_number_and_seed_have_none():
    own = [
        priced(
            cost,
            statistics=str(cost),
            seed=int(10 * cost),
            calibration={"_target_": f"sq.calibration.{name}.draw"},
        )
        for cost, name in ((0.1, "subset"), (0.3, "subset"), (0.8, "generated"))
    ]
    found = sensitivities.tables(own)
    assert set(found) == {"digits_resnet calibration=subset", "digits_resnet calibration=generated"}
    assert found["digits_resnet calibration=subset"].loc["a", "2"] == pytest.approx(0.2)


def test_settled_ends_are_apart_and_prices_of_inputs_have_their_own_table():
    settled = priced(0.1, ends="8bit") | {
        "sensitivity": {"a": {"8": 0.5}, "b": {"2": 0.1, "10": 0.05}}
    }
    free = priced(0.1, ends="all") | {"cost": {"inputs": {"a": {"4": 0.7}}}}
    found = sensitivities.tables([settled, free])
    assert set(found) == {
        "digits_resnet ends=8bit",
        "digits_resnet ends=all",
        "digits_resnet ends=all inputs",
    }
    assert found["digits_resnet ends=all inputs"].loc["a", "4"] == 0.7
    drawn = figure.heat(found["digits_resnet ends=8bit"], "")
    assert {text.get_text() for text in drawn.axes[0].texts} == {"5.0e-01", "1.0e-01", "5.0e-02"}


def test_names_make_file_names():
    assert (
        sensitivities.stem("resnet20 range=mse bits=[2, 3]")
        == "sensitivity_resnet20_range_mse_bits_2_3_"
    )


def test_committed_tables_of_grid_range_are_each_of_one_grid():
    whole = records.read_all(RESULTS / "grid_range")
    every: dict[str, dict[str, float]] = {}
    for one in whole:
        grid = one["config"]["grid"]
        name = f"{one['choices']['model']} symmetric={grid['symmetric']} range={grid['range']}"
        every.setdefault(name, {})[one["statistics"]] = next(iter(one["sensitivity"].values()))["2"]
    slim = Slim()
    found = sensitivities.tables([slim(one) for one in whole])
    assert {name.removeprefix("resnet20 ") for name in found if name.startswith("resnet20 ")} == {
        "range=mse",
        "range=minmax",
    }
    for name, cost in found.items():
        name = name if "symmetric" in name else name.replace("range", "symmetric=False range")
        assert cost["2"].iloc[0] == pytest.approx(statistics.fmean(every.pop(name).values()))
    assert every == {}
