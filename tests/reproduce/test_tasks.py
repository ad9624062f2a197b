import json

import pytest
from cli_helpers import as_it_was

from sq.bench import settings
from sq.errors import SqError
from sq.records import experiments, record
from sq.reproduce import tasks
from sq.runs import status

SWEEP = """\
# Question  Is it?
# Cost      3 runs, about {cost} minutes
defaults: [config, _self_]
name: {name}
hydra:
  mode: MULTIRUN
  sweeper:
    params:
      quantizer: {quantizer}
      seed: 0,1,2
"""
BENCH = """\
# Question  Which?
# Cost      1 layer x 1 quantizers x 1 bit-widths x 1 repeats = 1 solves, about 3 minutes
name: bench_small
source:
  _target_: sq.bench.sources.synthetic
  outputs: 2
  inputs: 9
  kernel: 3
  tail: 5
  maps:
    {_target_: sq.bench.features.maps, _partial_: true, positions: 4.0, side: 4, decay: 1.0,
     smoothness: 1.0, shift: 0.5, heterogeneity: 0.0}
quantizers: [rtn]
reference: rtn
bits: [4]
grid: uniform
repeats: 1
seed: 0
device: cpu
threads: 1
results: results
"""


@pytest.fixture
def folder(tmp_path):
    own = tmp_path / "experiments"
    own.mkdir()
    (own / "dear.yaml").write_text(SWEEP.format(name="dear", cost=10, quantizer="rtn"))
    (own / "cheap.yaml").write_text(SWEEP.format(name="cheap", cost=1, quantizer="gptq"))
    (own / "bench_small.yaml").write_text(BENCH)
    return own


def surveyed(folder, *words):
    with as_it_was():
        return tasks.survey(experiments.read(folder), folder.parent / "results", list(words))


def done(folder, stem, seconds, count=3, state="done"):
    with as_it_was():
        jobs = status.jobs_of(stem, folder.parent / "results", folder)
    for job in jobs[:count]:
        file = record.path(job.config)
        made = {
            "record": 1,
            "key": file.stem,
            "status": state,
            "choices": job.choices,
            "seconds": {"a": seconds},
        }
        record.write(file, made)


def test_by_the_headers_cost_where_nothing_is_known(folder):
    found = surveyed(folder)
    assert [(t.experiment.stem, t.seconds, len(t.missing)) for t in found] == [
        ("cheap", pytest.approx(60.0), 3),
        ("bench_small", 180.0, 1),
        ("dear", pytest.approx(600.0), 3),
    ]
    assert not (folder.parent / "results").exists()


def test_earlier_records_say_better(folder):
    done(folder, "cheap", 500.0, count=1)
    done(folder, "dear", 2.0, count=1)
    found = {t.experiment.stem: t for t in surveyed(folder)}
    assert [*found] == ["dear", "bench_small", "cheap"]
    assert found["dear"].seconds == pytest.approx(4.0)  # two runs are left
    assert found["cheap"].seconds == pytest.approx(1000.0)
    assert len(found["cheap"].missing) == 2
    assert len(found["cheap"].records) == 3


def test_failed_runs_are_missing_and_done_ones_are_not(folder):
    done(folder, "cheap", 1.0, state="failed")
    done(folder, "dear", 1.0)
    found = {t.experiment.stem: t for t in surveyed(folder)}
    assert len(found["cheap"].missing) == 3
    assert found["dear"].missing == []
    results = folder.parent / "results"
    assert len(tasks.missing_records(found["cheap"], results)) == 3
    assert tasks.missing_records(found["dear"], results) == []
    done(folder, "cheap", 1.0)
    assert tasks.missing_records(found["cheap"], results) == []


def test_unknown_costs_come_last(folder):
    text = (folder / "cheap.yaml").read_text()
    (folder / "cheap.yaml").write_text(text.replace("about 1 minutes", "who knows"))
    last = surveyed(folder)[-1]
    assert (last.experiment.stem, last.seconds) == ("cheap", None)


def test_a_benchmark_is_done_while_its_settings_are_those_of_the_record(folder):
    results = folder.parent / "results"
    own = settings.load("small", [f"results={results}"], folder)
    made = {
        "record": 1,
        "key": record.key(settings.plain(own)),
        "status": "done",
        "seconds": {"bench": 7.0},
    }
    record.write(own.file, made)
    (bench,) = [t for t in surveyed(folder) if t.experiment.is_bench]
    assert bench.missing == []
    (folder / "bench_small.yaml").write_text(BENCH.replace("repeats: 1", "repeats: 2"))
    (bench,) = [t for t in surveyed(folder) if t.experiment.is_bench]
    assert bench.missing == [own.file]
    assert tasks.missing_records(bench, results) == [own.file]
    own.file.write_text("{")
    (bench,) = [t for t in surveyed(folder) if t.experiment.is_bench]
    assert "is not a whole record" in bench.lacks[0]


def test_words_reach_the_runs_and_typos_are_found_before_any(folder):
    cheap, *_ = surveyed(folder, "tracker=none")
    assert cheap.command[-1] == "tracker=none"
    with pytest.raises(SqError, match=r"cheap\.yaml: tracker=nun: no such choice"):
        surveyed(folder, "tracker=nun")


def test_what_a_benchmark_needs(folder, monkeypatch):
    monkeypatch.delenv("SQ_DATA", raising=False)
    monkeypatch.chdir(folder)
    body = json.dumps(
        {
            "_target_": "sq.bench.sources.network",
            **{"model": "resnet20", "dataset": "cifar10", "calibration": "subset images=8"},
            **{"layers": None, "batch_size": 8},
        }
    )
    head, _, rest = BENCH.partition("source:\n")
    (folder / "bench_small.yaml").write_text(
        f"{head}source: {body}\nquantizers: {rest.partition('quantizers: ')[2]}"
    )
    (bench,) = [t for t in surveyed(folder) if t.experiment.is_bench]
    assert [line.partition("=")[0] for line in bench.lacks] == ["model.weights", "dataset.root"]


def test_records_beside_those_of_an_experiment_are_told(folder):
    done(folder, "dear", 1.0)
    results = folder.parent / "results"
    wanted = {
        file for task in surveyed(folder) if not task.experiment.is_bench for file in task.records
    }
    assert record.beside(wanted) == []
    record.write(results / "dear" / "0123456789abcdef.json", {"record": 1, "status": "failed"})
    (line,) = record.beside(wanted)
    assert line.startswith("dear: 1 record beside")
