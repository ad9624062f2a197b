from test_table import record

from sq.report import exports, table


def exported(kind, seed=0, **more):
    made = record(
        "rtn", seed=seed, top1=90.0 + seed, export={"_target_": f"sq.export.{kind}.write"}
    )
    made["choices"]["export"] = kind
    made["key"] += kind
    made["results"] |= {"headline": "top1", "bytes_full": 1000}
    made["evaluation"] = {"images": 300}
    return made | {
        "export": {"format": kind, "bytes": 100 + 20 * seed, "figures": {"top1": 90.5}} | more
    }


def test_files_stand_beside_their_runs():
    more = {"agreement": {"same_top1": 99.0}, "outputs_snr_db": 61.25}
    records = [exported("packed"), exported("packed", 1), exported("onnx", **more), record("obq")]
    first, second = sorted(
        exports.table(table.rows(records), records).to_dict("records"), key=lambda own: own["runs"]
    )
    assert (first["format"], first["bytes"], first["answers apart"], first["outputs dB"]) == (
        "onnx",
        "100",
        "3",
        "61.2",
    )
    assert (second["format"], second["bytes"], second["x 32 bits"], second["runs"]) == (
        "packed",
        "110",
        "0.110",
        "2",
    )
    assert (second["figure"], second["file"], second["run"], second["outputs dB"]) == (
        "top-1 %",
        "90.50",
        "90.50",
        "-",
    )


def test_no_files_are_no_table():
    assert exports.table(table.rows([record("rtn")]), [record("rtn")]) is None
