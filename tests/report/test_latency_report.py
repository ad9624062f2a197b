"""Latency in tables and figures."""

from test_table import record

from sq.report import latency, style, table


def timed(bits, seed=0, wide=True):
    made = record("rtn", bits=bits, seed=seed, top1=90.0 - seed)
    made["results"] |= {"headline": "top1", "bits": bits}
    full = {
        "median": 1.0,
        "low": 0.9,
        "high": 1.2,
        "bytes": 1000,
        "faster": dict.fromkeys(("median", "low", "high"), 1),
    }
    own = {
        "median": 2.0 + seed,
        "low": 1.5,
        "high": 2.5,
        "bytes": 200,
        "faster": {"median": 0.5, "low": 0.4, "high": 0.6},
    }
    networks = {"full": full, "w8a8": own, "w4a8": own, "run": own} | (
        {"run_in_8": own} if wide else {}
    )
    sums = {"full": 0.75, "run": 1.5}
    return made | {"latency": {"networks": networks, "sums": sums}}


def test_networks_of_a_run_stand_beneath_each_other():
    records = [timed(4), timed(4, seed=1), timed(8, wide=False), record("obq")]
    lines = latency.table(table.rows(records), records).to_dict("records")
    four = [line for line in lines if line["bits"] == "4"]
    assert [line["network"] for line in four] == [*latency.NAMES.values()]
    assert [line["network"] for line in lines if line["bits"] == "8"] == [*latency.NAMES.values()][
        :4
    ]
    assert four[0]["ms"] == "1.000 [0.900, 1.200]"
    assert four[3]["ms"] == "2.500 [1.500, 2.500]"
    assert four[3]["x full precision"] == "0.50 [0.40, 0.60]"
    assert [line["layers alone"] for line in four] == ["0.750", "-", "-", "1.500", "-"]
    assert (four[3]["bytes"], four[3]["runs"]) == ("200", "2")


def test_accuracy_size_and_latency_are_drawn_together():
    records = [timed(4), timed(8, wide=False), record("obq")]
    ((name, figure),) = latency.figures(table.rows(records), records)
    assert name == "latency"
    (panel,) = figure.axes
    names = panel.get_legend_handles_labels()[1]
    assert names == ["full precision", "rtn"]
    assert panel.get_xlabel() == "times as fast as full precision"
    areas = sorted(
        float(points.get_sizes()[0]) for points in panel.collections if hasattr(points, "get_sizes")
    )
    assert areas[-1] == latency.AREA
    assert areas[0] == latency.AREA * 0.2, "as large as the file"
    hollow = [own for own in panel.collections if own.get_facecolor().tolist() == [[1, 1, 1, 1]]]
    assert len(hollow) == 1, "what is stored in 8 bits"
    assert sorted(text.get_text() for text in panel.texts) == ["4", "4", "8"]
    style.pyplot().close(figure)


def test_nothing_timed_is_no_table_and_no_figure():
    records = [record("rtn")]
    assert latency.table(table.rows(records), records) is None
    assert [*latency.figures(table.rows(records), records)] == []


def test_tables_of_layers_are_written_anew_from_records():
    made = timed(4)
    times = [
        {"layer": "a", "bits": [2, 4], "input_bits": [4, 8], "median": 0.5, "low": 0.4, "high": 9},
        {"layer": "a", "bits": [32], "input_bits": [32], "median": 1, "low": 1, "high": 1},
    ]
    made["latency"] |= {"table": "key.latency.csv", "layers": times}
    assert latency.layers([made, timed(8), record("obq")]) == {
        "key.latency.csv": "layer,bits,input_bits,ms,low,high\n"
        "a,2,4,0.50000,0.40000,9.00000\na,2,8,0.50000,0.40000,9.00000\n"
        "a,4,4,0.50000,0.40000,9.00000\na,4,8,0.50000,0.40000,9.00000\na,32,32,1.00000,1.00000,1.00000\n"
    }


def test_vnni_is_told_where_records_tell_it():
    records = [timed(4), timed(4, seed=1)]
    assert "VNNI" not in latency.table(table.rows(records), records)
    records[0]["latency"]["vnni"] = False
    assert set(latency.table(table.rows(records), records)["VNNI"]) == {"no"}
    records[1]["latency"]["vnni"] = True
    assert set(latency.table(table.rows(records), records)["VNNI"]) == {"no and yes"}
