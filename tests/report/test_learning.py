import pytest
from test_table import record

from sq.report import learning, style, table


def learned(quantizer, steps, seconds, seed=0, *, iterations=None, init="rtn"):
    made = record(quantizer, seed=seed, seconds=seconds, top1=90 + seconds)
    start = {"_target_": "sq.quantizer.layerwise.quantize", "damp": {"rtn": 0.01, "obq": 0.1}[init]}
    learn = {"iterations": iterations or steps}
    made["config"]["quantizer"] = {"learn": learn, "init": init, "start": start, "seed": seed}
    made["key"] += f"{steps}{init}"
    told = {
        "steps": steps,
        "cpu_seconds_per_step": seconds / steps,
        "flipped": 0.125,
        "biases_moved": 3,
    }
    return made | {"learning": told}


def test_means_over_seeds_of_what_was_learned():
    records = [learned("eptq", 10, 1.0), learned("eptq", 10, 3.0, seed=1), record("rtn")]
    (line,) = learning.table(table.rows(records), records).to_dict("records")
    assert (line["method"], line["steps"], line["runs"]) == ("eptq", "10", "2")
    assert (line["CPU s a step"], line["solve s"], line["codes changed"]) == (
        "0.200",
        "2.0",
        "12.50%",
    )


def test_figures_that_one_run_lacks_are_left_out():
    records = [learned("eptq", 10, 1.0), learned("eptq", 10, 3.0, seed=1)]
    del records[1]["learning"]["flipped"]
    (line,) = learning.table(table.rows(records), records).to_dict("records")
    assert (line["codes changed"], line["steps"]) == ("-", "10")


def test_nothing_learned_is_no_table_and_no_figure():
    rows = table.rows([record("rtn")])
    assert learning.table(rows, [record("rtn")]) is None
    assert list(learning.figures(rows, [record("rtn")])) == []


def test_the_solver_to_start_from_is_named_by_its_name_alone():
    methods = [
        row["labels"]["method"]
        for row in table.rows([learned("eptq", 9, 1.0, init=i) for i in ("rtn", "obq")])
    ]
    assert methods == ["eptq init=obq", "eptq init=rtn"]


def test_a_line_joins_the_runs_of_one_method_with_different_steps():
    records = [
        learned("eptq", steps, seconds, seed)
        for steps, seconds in ((50, 2.0), (10, 1.0))
        for seed in (0, 1)
    ]
    records.append(record("rtn", seconds=0.5))
    ((name, figure),) = learning.figures(table.rows(records), records)
    (axes,) = figure.axes
    lines = {bar.get_label(): bar.lines[0] for bar in axes.containers}
    assert name == "time"
    assert lines["eptq"].get_xdata().tolist() == [1.0, 2.0]
    assert lines["eptq"].get_ydata().tolist() == [91.0, 92.0]
    assert lines["rtn"].get_xdata().tolist() == [0.5]
    style.pyplot().close(figure)


def test_bits_have_panels_and_settings_that_differ_have_lines():
    records = [
        record("rtn", bits=bits, seconds=1.0 + i, fold=i > 0) for bits in (4.0, 3.0) for i in (0, 1)
    ]
    records += [learned("eptq", 10, 1.0)]
    records[-1]["config"]["fold"] = True
    for i, own in enumerate(records):
        own["key"] = str(i)
    ((_, figure),) = learning.figures(table.rows(records), records)
    first, second = figure.axes
    assert [axes.get_title(loc="left") for axes in (first, second)] == [
        "weights 4 bits",
        "weights 3 bits",
    ]
    assert {bar.get_label() for bar in first.containers} == {
        "eptq",
        "rtn fold=False",
        "rtn fold=True",
    }
    assert {bar.get_label() for bar in second.containers} == {"rtn fold=False", "rtn fold=True"}
    style.pyplot().close(figure)


def test_time_is_that_of_the_cpu_where_something_was_learned():
    records = [learned("eptq", 10, 4.0), record("rtn", seconds=0.5)]
    records[0]["results"]["solve_seconds"] = 9.0
    for told, wanted in (({}, 4.0), ({"cpu_seconds": 5.0}, 5.0)):
        records[0]["learning"] |= told
        ((_, figure),) = learning.figures(table.rows(records), records)
        drawn = {
            bar.get_label(): bar.lines[0].get_xdata().tolist() for bar in figure.axes[0].containers
        }
        assert drawn == {"eptq": [wanted], "rtn": [0.5]}
        style.pyplot().close(figure)


def test_steps_stand_beside_those_of_full_precision_in_the_same_run():
    records = [learned("lsq", 10, 2.0), learned("lsq", 10, 4.0, seed=1)]
    for own, plain in zip(records, (0.1, 0.4), strict=True):
        own["learning"]["plain_cpu_seconds_per_step"] = plain
    (line,) = learning.table(table.rows(records), records).to_dict("records")
    assert line["x full precision"] == "1.50"  # of 2 and 1: each in its own run
    del records[0]["learning"]["plain_cpu_seconds_per_step"]
    (line,) = learning.table(table.rows(records), records).to_dict("records")
    assert line["x full precision"] == "-"


def test_what_lies_far_below_is_said_at_the_edge():
    records = [learned("eptq", 10, 1.0), learned("qdrop", 10, 2.0), record("rtn", seconds=0.5)]
    for own, lost in zip(records, (1.0, 2.0, 60.0), strict=True):
        own["results"] |= {"top1": 91.0 - lost, "drop": lost}
    ((_, figure),) = learning.figures(table.rows(records), records)
    (axes,) = figure.axes
    low, high = axes.get_ylim()
    assert (low, 91 < high < 93) == (pytest.approx(91 - 4 * 2), True)
    assert [text.get_text() for text in axes.texts] == ["31 ↓"]
    style.pyplot().close(figure)


def test_names_stand_in_as_many_columns_as_there_is_room_for():
    plt = style.pyplot()
    for letters, wanted in ((3, 4), (40, 1)):
        figure, axes = plt.subplots(1, 1, figsize=(4, 3), squeeze=False, layout="constrained")
        for i in range(5):
            axes[0, 0].plot([0, 1], [0, i], label=str(i) * letters)
        style.legend(figure, axes, 4)
        (made,) = figure.legends
        assert made._ncols == wanted
        figure.canvas.draw()
        assert made.get_window_extent().x0 >= 0
        plt.close(figure)
