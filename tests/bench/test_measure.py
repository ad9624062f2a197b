"""Measurements, and the reports made of them."""

import hashlib
import json

import pytest
import torch

from sq.bench import __main__ as bench
from sq.bench import measure, report
from sq.config.instantiate import build
from sq.errors import SqError
from sq.quantizer import layerwise
from sq.records import record
from sq.solver import gptq, obq

CHEAP = [
    "source.inputs=36",
    "source.outputs=12",
    "source.maps.side=6",
    "bits=[4,3]",
    "repeats=2",
    "threads=1",
]
SAMPLED = 'quantizers=[rtn,gptq,"gptq solve.order=act",{quantizer: obq,sample_rows: 4,above: 30}]'


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bench")
    deterministic = torch.are_deterministic_algorithms_enabled()
    assert bench.main(["synthetic", *CHEAP, SAMPLED, f"results={folder}"]) == 0
    torch.use_deterministic_algorithms(deterministic)
    return folder / "bench_synthetic" / "bench.json"


def test_record_holds_every_measurement(made):
    found = record.read(made)
    assert (found["status"], found["name"]) == ("done", "bench_synthetic")
    assert {"commit", "dirty", "packages", "machine", "threads"} <= set(found["provenance"])
    rows = found["measurements"]
    assert len(rows) == 4 * 2
    assert {m["quantizer"] for m in rows} == {"rtn", "gptq", "gptq order=act", "obq"}
    for m in rows:
        assert (m["groups"], m["outputs"], m["inputs"], m["count"]) == (1, 12, 36, 1)
        assert len(m["seconds_all"]) == 2
        assert m["seconds_min"] <= m["seconds"]
        assert m["fit_seconds"] > 0
        assert m["peak_bytes"]["process"] > 0
        assert (m["damp_used"], m["damp_retries"]) == (0.01, 0)
        assert m["extrapolated"] is (m["quantizer"] == "obq")
        assert set(m["errors"]) == ({"2", "4"} if m["quantizer"] == "obq" else {"2", "4", "12"})
        assert set(m["solved"]) == ({"2", "4"} if m["quantizer"] == "obq" else {"12"})
    sampled = next(m for m in rows if m["quantizer"] == "obq")
    for total, large, small in zip(
        sampled["seconds_all"], *(sampled["solved"][n] for n in ("4", "2")), strict=True
    ):
        assert total == pytest.approx(measure.extrapolated((4, large), (2, small), 12))


def test_errors_are_those_of_the_solvers(made, fit):
    from sq.bench import settings
    from sq.hessian.layer_statistics import relative_error

    own = settings.load("synthetic", CHEAP)
    (case,) = build(own.source, "source")(0, torch.device("cpu"))
    W, hessian = case.make()
    H = layerwise.damped(hessian, 0.01).float()
    some = torch.randperm(12, generator=torch.Generator().manual_seed(0))[:4]
    grid = fit(W, 3)
    found = {
        m["quantizer"]: m["errors"] for m in record.read(made)["measurements"] if m["bits"] == 3
    }
    Q = grid.decode(gptq.solve(W, H, grid, order="natural", block=64))
    assert found["gptq"]["12"] == pytest.approx(relative_error(W, Q, hessian), rel=1e-5)
    assert found["gptq"]["4"] == pytest.approx(
        relative_error(W[:, some], Q[:, some], hessian), rel=1e-5
    )
    assert found["rtn"]["12"] == pytest.approx(
        relative_error(W, grid.nearest(W), hessian), rel=1e-5
    )
    part = grid.map(lambda t: t[:, some])
    Q = part.decode(obq.solve(W[:, some], H, part, outliers=True, memory_gib=1.0, block=32))
    assert found["obq"]["4"] == pytest.approx(relative_error(W[:, some], Q, hessian), rel=1e-5)


def digests(folder):
    return {
        f.name: hashlib.sha256(f.read_bytes()).hexdigest()
        for f in folder.iterdir()
        if f.name != "bench.json"
    }


def test_report_comes_from_the_record_alone_and_is_the_same_each_time(made, tmp_path, capsys):
    target = tmp_path / "bench_synthetic" / "bench.json"
    target.parent.mkdir()
    target.write_bytes(made.read_bytes())
    capsys.readouterr()
    assert bench.main(["synthetic", "--report", f"results={tmp_path}"]) == 0
    assert capsys.readouterr().out.startswith("## Totals")
    assert digests(target.parent) == digests(made.parent)
    assert set(digests(target.parent)) == {
        *("table.md", "totals.csv", "exponents.csv", "layers.csv"),
        *("scaling.svg", "scaling.pdf", "tradeoff.svg", "tradeoff.pdf"),
    }
    text = (target.parent / "table.md").read_text()
    assert "| ~" in text, "extrapolated times are marked"
    assert text.count("\n## ") == 3


def test_second_run_says_what_the_first_took(made, capsys):
    from sq.bench import settings

    words = [*CHEAP, SAMPLED, f"results={made.parents[1]}"]
    assert "by the earlier record, which this replaces (the same settings)" in bench._forecast(
        settings.load("synthetic", words)
    )
    assert "(other settings)" in bench._forecast(settings.load("synthetic", [*words, "repeats=3"]))


def test_damaged_or_foreign_records(tmp_path, capsys):
    file = tmp_path / "bench_synthetic" / "bench.json"
    file.parent.mkdir()
    file.write_text(json.dumps({"record": record.VERSION, "status": "done"}))
    with pytest.raises(SqError, match="not a benchmark's record"):
        report.build(file)
    file.write_text("{")
    with pytest.raises(SqError, match="not a whole record"):
        report.build(file)
    from sq.report import __main__ as runs

    assert runs.main(["bench_synthetic", "--results", str(tmp_path)]) == 1
    assert "holds a benchmark: python -m sq.bench synthetic --report" in capsys.readouterr().err


def test_progress_shows_on_a_terminal(monkeypatch, fit):
    import io

    from rich.console import Console

    from sq.bench import settings
    from sq.core import progress

    monkeypatch.setattr(
        progress, "err", Console(force_terminal=True, file=io.StringIO(), width=100)
    )
    own = settings.load("synthetic", [*CHEAP, "quantizers=[rtn]", "reference=rtn"])
    cases = build(own.source, "source")(0, torch.device("cpu"))
    found = list(measure.run(cases, settings.methods(own), fit, [3], 1, torch.device("cpu")))
    assert len(found) == 1
    shown = progress.err.file.getvalue()
    assert "statistics" in shown
    assert "layer 1 of 1" in shown


def test_damping_out_of_range(fit):
    from sq.bench import settings

    own = settings.load("synthetic", ['quantizers=["rtn damp=1.5"]', 'reference="rtn damp=1.5"'])
    with pytest.raises(SqError, match=r"quantizer\.damp=1\.5"):
        list(measure.run([], settings.methods(own), fit, [3], 1, torch.device("cpu")))


def test_what_a_solver_prepares_is_not_timed(fit, correlated, monkeypatch):
    from functools import partial

    W, H = correlated(0)
    grid, calls = fit(W, 3), []

    def prepare(W, H, grid, *, order, block):
        calls.append("prepared")
        return lambda: calls.append("solved")

    start = measure.prepared(partial(gptq.solve, order="act", block=8), W, H, grid)
    assert torch.equal(start(), gptq.solve(W, H, grid, order="act", block=8))
    monkeypatch.setattr(gptq, "prepare", prepare, raising=False)
    start = measure.prepared(partial(gptq.solve, order="act", block=8), W, H, grid)
    assert calls == ["prepared"]
    start()
    assert calls == ["prepared", "solved"]
