import copy
import math
import time

import pytest

from sq.report import figure, style, table


def record(
    quantizer="rtn",
    bits=4.0,
    seed=0,
    *,
    top1=98.0,
    seconds=1.0,
    statistics="s0",
    machine="m",
    **config,
):
    knobs = {"damp": 0.01, "solve": {"_target_": f"sq.solver.{quantizer}"}}
    settings = {
        "name": "t",
        "results": "r",
        "outputs": "o",
        "rerun": False,
        "tracker": {"mode": "offline"},
        "bits": bits,
        "seed": seed,
        "calibration": {"images": 8, "seed": seed},
        "grid": {"range": "mse"},
        "allocation": {},
        "model": {"weights": None},
        "quantizer": knobs,
    } | config
    figures = {
        "top1": top1,
        "drop": 99.0 - top1,
        "relative_error": 0.01 * seconds,
        "solve_seconds": seconds,
    }
    return {
        "status": "done",
        "key": f"{quantizer}{bits}{seed}",
        "choices": {
            "quantizer": quantizer,
            "model": "digits_resnet",
            "calibration": "subset",
            "tracker": "wandb",
        },
        "config": settings,
        "results": figures,
        "statistics": statistics,
        "provenance": {"machine": machine},
        "sensitivity": {"a": {"2": 0.2, "10": 0.1}, "b": {"2": 0.4, "10": 0.3}},
    }


def test_seeds_are_averaged_and_bits_fall():
    made = table.rows([record(bits=3.0), record(seed=0, top1=98.0), record(seed=1, top1=96.0)])
    assert [(row["labels"], row["runs"]) for row in made] == [
        ({"method": "rtn", "bits": 4.0}, 2),
        ({"method": "rtn", "bits": 3.0}, 1),
    ]
    cells = table.build([record(seed=0, top1=98.0), record(seed=1, top1=96.0)]).iloc[1]
    assert cells["top-1 %"] == f"97.00 +- {math.sqrt(2):.2f}"
    assert cells["runs"] == "2"


def test_settings_that_vary_tell_methods_apart():
    static, dynamic = record("sensiquant"), record("sensiquant")
    static["config"]["quantizer"]["solve"]["order"] = "static"
    dynamic["config"]["quantizer"]["solve"]["order"] = "dynamic"
    methods = [row["labels"]["method"] for row in table.rows([static, dynamic, record("obq")])]
    assert methods == ["obq", "sensiquant order=dynamic", "sensiquant order=static"]


def test_settings_that_only_the_network_decides_are_no_part_of_a_name():
    small, large = record("eptq"), record("eptq")
    large["choices"]["model"] = "resnet20"
    large["config"]["quantizer"]["damp"] = 0.1
    assert [row["labels"]["method"] for row in table.rows([small, large])] == ["eptq", "eptq"]
    other = copy.deepcopy(large)
    other["config"]["quantizer"]["damp"] = 0.2
    names = [row["labels"]["method"] for row in table.rows([small, large, other])]
    assert sorted(names) == ["eptq damp=0.01", "eptq damp=0.1", "eptq damp=0.2"]


def test_other_choices_and_settings_that_vary_become_columns():
    few, many = record(), record(calibration={"images": 64, "seed": 0})
    assert [row["labels"]["calibration.images"] for row in table.rows([few, many])] == [8, 64]
    other = copy.deepcopy(record(seed=2))
    other["choices"]["model"] = "resnet18"
    assert {row["labels"]["model"] for row in table.rows([few, other])} == {
        "digits_resnet",
        "resnet18",
    }


def test_bookkeeping_splits_nothing():
    elsewhere = record(seed=1, results="elsewhere", tracker={"mode": "disabled"})
    assert len(table.rows([record(), elsewhere])) == 1


def test_speedup_is_over_obq_on_the_same_problem_and_machine():
    fast = record("sensiquant", seconds=0.5)
    assert table.speedup(
        fast, table.reference_times([fast, record("obq", seconds=10.0)])
    ) == pytest.approx(20)
    for stranger in (
        record("obq", statistics="s1"),
        record("obq", machine="other"),
        record("obq", bits=3.0),
        record("obq", grid={"range": "minmax"}),
        record("gptq"),
    ):
        assert table.speedup(fast, table.reference_times([fast, stranger])) is None
    assert table.build([fast]).iloc[1]["speed-up"] == "-"


def test_failed_runs_are_not_in_the_table():
    failed = record("obq") | {"status": "failed"}
    assert [row["labels"]["method"] for row in table.rows([record(), failed])] == ["rtn"]


def test_full_precision_comes_first_once_for_each_network():
    full = table.build([record(), record("obq", bits=3.0)]).iloc[0]
    assert (full["method"], full["bits"], full["top-1 %"], full["drop"]) == (
        "full precision",
        "32",
        "99.00",
        "-",
    )
    other = copy.deepcopy(record(top1=70.0))
    other["choices"]["model"] = "resnet18"
    two = table.build([record(), other])
    assert list(two["method"]).count("full precision") == 2


def test_numbers_in_names_sort_as_numbers():
    runs = [record("sensiquant") for _ in range(3)]
    for run, rankings in zip(runs, (10, None, 2), strict=True):
        run["config"]["quantizer"]["solve"]["rankings"] = rankings
    names = [row["labels"]["method"].split("=")[1] for row in table.rows(runs)]
    assert names == ["2", "10", "None"]


def test_no_negative_zero():
    assert table.build([record(top1=99.0 + 1e-9)]).iloc[1]["drop"] == "0.00"


def test_time_grows_as_the_number_of_runs():
    many = [
        record(q, bits=float(b), seed=s, statistics=f"s{s}")
        for q in ("rtn", "obq")
        for b in (2, 3)
        for s in range(1500)
    ]
    started = time.process_time()
    made = table.rows(many)
    assert time.process_time() - started < 2  # a look at every pair of them takes 8, this one 0.2
    assert [row["runs"] for row in made] == [1500] * 4
    assert {len(row["speedup"]) for row in made} == {1500}


def test_a_setting_that_is_a_list_can_tell_runs_apart():
    records = [record(latency={"bits": [4]}), record(latency={"bits": [4, 8]})]
    rows = table.rows(records)
    assert {row["labels"]["latency.bits"] for row in rows} == {"[4]", "[4, 8]"}
    for _, drawn in figure.all_figures(rows, records):  # lists are no numbers, and can be looked up
        style.pyplot().close(drawn)


def timed(quantizer, seconds, cpu=None, seed=0):
    made = record(quantizer, seed=seed, seconds=seconds)
    if cpu is not None:
        made["results"]["solve_cpu_seconds"] = cpu
    return made


def test_times_are_cpu_seconds_where_all_records_have_them():
    # on a machine that does something else
    busy = [timed("obq", 30.0, 3.0), timed("sensiquant", 9.0, 0.15)]
    obq, fast = sorted(table.rows(busy), key=lambda row: row["labels"]["method"])
    assert (obq["solve_seconds"], fast["solve_seconds"]) == ([3.0], [0.15])
    assert fast["speedup"] == pytest.approx([20.0])
    for old in (
        [timed("obq", 4.0), busy[1]],
        [busy[0], timed("sensiquant", 2.0)],
    ):  # one has seconds on the clock alone
        obq, fast = sorted(table.rows(old), key=lambda row: row["labels"]["method"])
        assert obq["solve_seconds"] + fast["solve_seconds"] == [
            r["results"]["solve_seconds"] for r in old
        ]
        assert fast["speedup"] == pytest.approx(
            [obq["solve_seconds"][0] / fast["solve_seconds"][0]]
        )
    assert table.reference_times([busy[0], timed("obq", 6.0, seed=1)]).popitem()[1] == {
        "solve_seconds": 18.0
    }
