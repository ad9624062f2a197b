"""Pages hold what records hold, whatever stands in these, and nothing from elsewhere."""

import json
import re

import pytest
from report_pages import NASTY, RESULTS, Page, at, built, copied, with_failures

from sq.config.schema import leaves
from sq.errors import SqError
from sq.records import record
from sq.report import __main__ as report
from sq.report import index, page_data
from sq.report.slim import Slim


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("results")
    with_failures(made)
    return made


@pytest.fixture(scope="module")
def page(folder):
    return built(folder)


def records(folder):
    return {r["key"]: r for r in record.read_all(folder / "quickstart")}


def test_table_is_that_of_the_markdown(folder, page):
    data = page.json("page")
    lines = (folder / "quickstart" / "table.md").read_text().splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert [data["summary"]["columns"], *data["summary"]["rows"]] == [cells[0], *cells[2:]]
    assert len(data["groups"]) == len(cells) - 3  # full precision has no runs
    for group, line in zip(data["groups"], cells[3:], strict=True):
        assert [group["labels"]["method"], group["labels"]["bits"], str(len(group["runs"]))] == [
            *line[:2],
            line[-1],
        ]


def test_every_run_has_its_settings_figures_and_layers(folder, page):
    data, layers, known = page.json("page"), page.json("layers"), records(folder)
    runs = data["runs"]
    assert sorted(runs["key"]) == sorted(known)
    for place, key in enumerate(runs["key"]):
        own = known[key]
        settings = {
            k: v
            for k, v in leaves(own["config"]).items()
            if k.split(".")[0] not in record.BOOKKEEPING
        }
        for name, value in settings.items():
            if not name.endswith("_partial_"):
                assert at(runs["settings"][name], place) == value, name
        assert at(runs["settings"]["quantizer"], place) == own["choices"]["quantizer"]
        assert at(runs["facts"]["status"], place) == own["status"]
        if own["status"] == "failed":
            assert layers[place] is None
            assert runs["figures"]["top1"][place] is None
            continue
        assert runs["figures"]["relative_error"][place] == pytest.approx(
            own["results"]["relative_error"], rel=1e-5
        )
        assert runs["figures"]["seconds"][place] == pytest.approx(
            sum(own["seconds"].values()), rel=1e-5
        )
        shape, bits, inputs, errors, seconds, rare = layers[place]
        assert data["shapes"][shape][0] == [layer["name"] for layer in own["layers"]]
        assert errors == pytest.approx(
            [layer["relative_error"] for layer in own["layers"]], rel=5e-3
        )
        assert seconds == pytest.approx(
            [layer["solve_seconds"] for layer in own["layers"]], rel=5e-3
        )
        assert (bits, inputs, rare) == (own["config"]["bits"], 32, {})


def test_runs_are_listed_by_label_and_seed(page):
    runs = page.json("page")["runs"]
    listed = [
        (
            at(runs["labels"]["method"], i),
            -float(at(runs["labels"]["bits"], i)),
            at(runs["settings"]["seed"], i),
        )
        for i in range(len(runs["key"]))
    ]
    assert listed == sorted(listed)
    assert len(set(listed)) == len(listed)


def test_failures_are_there_with_causes_and_break_nothing(folder, page):
    data = page.json("page")
    failed = {r["key"]: r for r in records(folder).values() if r["status"] == "failed"}
    assert len(failed) == 3
    assert {data["runs"]["key"][own["run"]]: own["error"] for own in data["failures"]} == {
        key: r["error"] for key, r in failed.items()
    }
    assert all(own["traceback"].startswith("Traceback") for own in data["failures"])
    assert NASTY in {own["error"] for own in data["failures"]}
    # none was ended early, none was added
    assert set(page.scripts) == {"summary", "page", "layers", None}
    assert [tag for tag, _ in page.tags].count("script") == 4
    assert "document.title" not in "".join(page.words)


def test_page_needs_nothing_from_elsewhere(page):
    for tag, attributes in page.tags:
        assert tag not in ("iframe", "object", "embed", "img")
        assert "src" not in attributes
        for name in ("href", "action"):
            link = attributes.get(name) or ""
            assert not re.match(r"[a-z]+:|//", link.replace("data:,", "")), link
    assert "@import" not in page_text(page)
    assert "url(" not in page_text(page)
    (policy,) = [
        a["content"] for tag, a in page.tags if a.get("http-equiv") == "Content-Security-Policy"
    ]
    assert "default-src 'none'" in policy


def page_text(page):
    return page.scripts[None] + "".join(page.words)


def test_header_tells_question_cost_and_how_runs_stand(page):
    words = " ".join(" ".join(page.words).split())
    assert "Does SensiQuant reach OBQ's accuracy in a small fraction of its time" in words
    assert "python run.py -cd experiments -cn quickstart" in words
    assert "45 runs, about 4 minutes on 2 CPU cores" in words
    assert "42 done 3 failed" in words


def test_links_lead_to_files(folder, page):
    links = [a["href"] for tag, a in page.tags if tag == "a" and not a["href"].startswith("#")]
    assert {
        "table.md",
        "table.tex",
        "table.csv",
        "figure.svg",
        "figure.pdf",
        "../index.html",
    } <= set(links)
    assert all((folder / "quickstart" / link).is_file() for link in links)


def test_experiment_of_failures_only_has_a_page(tmp_path, capsys):
    target = tmp_path / "sad"
    target.mkdir()
    bare = {
        "record": 1,
        "status": "failed",
        "key": "cut",
        "name": "",
        "choices": {},
        "config": {},
        "error": "why",
    }
    (target / "cut.json").write_text(json.dumps(bare))
    files = report.build("sad", tmp_path)
    assert [file.name for file in files] == ["index.html", "index.html"]
    data = Page(files[0]).json("page")
    assert data["failures"] == [{"run": 0, "error": "why", "traceback": ""}]
    assert data["summary"] is None
    (tmp_path / "README.md").write_text("<!-- table: sad -->\n<!-- end -->\n")
    assert (
        report.main(["sad", "--results", str(tmp_path), "--into", str(tmp_path / "README.md")]) == 1
    )
    assert "failed runs only" in capsys.readouterr().err


def test_index_lists_experiments_benchmarks_and_what_is_not_reported(folder, page, tmp_path):
    (tmp_path / "reported").symlink_to(folder / "quickstart")
    (tmp_path / "bench_synthetic").symlink_to(RESULTS / "bench_synthetic")
    copied(tmp_path, "rankings")
    (tmp_path / "empty").mkdir()
    assert report.index(tmp_path) == tmp_path / "index.html"
    data = Page(tmp_path / "index.html").json("index")
    named = {own["name"]: own for own in data["experiments"]}
    assert set(named) == {"quickstart", "rankings"}
    own = named["quickstart"]
    assert (own["done"], own["failed"], own["models"], own["note"]) == (
        42,
        3,
        ["digits_resnet"],
        "",
    )
    assert own["methods"] == ["gptq", "obq", "rtn", "sensiquant", "sensiquant_plus"]
    assert own["question"].startswith("Does SensiQuant reach OBQ's accuracy")
    assert "not reported yet: python -m sq.report rankings" in named["rankings"]["note"]
    (bench,) = data["benchmarks"]
    assert bench["question"].startswith("What do solvers cost")
    assert ["table.md", "bench_synthetic/table.md"] in bench["files"]
    assert [method for method, speedup, _ in bench["totals"] if speedup == "reference"] == ["obq"]


def test_index_tells_the_best_at_each_bit_width(page):
    (own,) = page.json("summary")["best"]
    rows = [
        [*line[:2], float(line[2].split()[0])] for line in page.json("page")["summary"]["rows"][1:]
    ]
    assert [bits for bits, _, _ in own["best"]] == ["4", "3", "2"]
    for bits, value, method in own["best"]:
        figures = {name: score for name, b, score in rows if b == bits}
        assert float(value) == max(figures.values()) == figures[method]


def test_index_says_when_a_page_is_older_than_its_records(tmp_path):
    with_failures(tmp_path)
    report.build("quickstart", tmp_path)
    sorted((tmp_path / "quickstart").glob("*.json"))[0].unlink()
    (own,) = Page(report.index(tmp_path)).json("index")["experiments"]
    assert "of 45 runs, now there are 44" in own["note"]


def test_index_alone(tmp_path, capsys):
    assert report.main(["--index", "--results", str(tmp_path)]) == 0
    assert Page(tmp_path / "index.html").json("index") == {"experiments": [], "benchmarks": []}
    assert report.main(["--index", "--results", str(tmp_path / "nowhere")]) == 1
    assert "no folder" in capsys.readouterr().err
    for words in ([], ["a", "--index"], ["--index", "--into", "x"]):
        with pytest.raises(SystemExit):
            report.main(words)


def test_rare_figures_of_layers_and_different_bits_are_kept():
    layer = {
        "name": "a",
        "kind": "1x1",
        "groups": 1,
        "outputs": 2,
        "inputs": 3,
        "weights": 6,
        "activation_bits": 32,
    }
    layer |= {
        "relative_error": 0.12345,
        "solve_seconds": 1.0,
        "damp_used": 0.01,
        "damp_retries": 0,
        "dead_inputs": 0,
    }
    odd = layer | {
        "name": "b",
        "damp_used": 0.1,
        "damp_retries": 2,
        "dead_inputs": 3,
        "solve_seconds": None,
    }
    slim = Slim()
    own = slim(
        {
            "status": "failed",
            "choices": {},
            "config": {},
            "layers": [layer | {"bits": 4}, odd | {"bits": 8}],
        }
    )
    rare = {"damp_retries": {"1": 2}, "damp_used": {"1": 0.1}, "dead_inputs": {"1": 3}}
    assert json.loads(own["columns"]) == [0, [4, 8], 32, [0.123, 0.123], [1.0, None], rare]
    assert "layers" not in own
    (shape,) = slim.shapes
    assert shape == (("a", "b"), ("1x1", "1x1"), (1, 1), (2, 2), (3, 3), (6, 6))


def test_layers_stay_small():
    slim = Slim()
    kept = record.read_all(RESULTS / "cifar10", slim)
    layers = {index: len(shape[0]) for index, shape in enumerate(slim.shapes)}
    for own in kept:
        assert len(own["columns"]) < 22 * layers[json.loads(own["columns"])[0]] + 60


def test_claims_stand_on_the_page(tmp_path):
    copied(tmp_path)
    claim = {
        "source": "Paper <1>",
        "evidence": "SRC",
        "setting": "all layers",
        "when": {"grid.symmetric": False},
        "full": {"digits_resnet": 99.2},
        "figures": [{"model": "digits_resnet", "quantizer": "obq", "bits": 3, "top1": 98.0}],
    }
    (tmp_path / "claims.yaml").write_text(json.dumps([claim]))
    claims = built(tmp_path).json("page")["claims"]
    row = dict(zip(claims["columns"], claims["rows"][0], strict=True))
    assert (row["source"], row["claimed"], row["measured"], row["gap"]) == (
        "Paper <1>",
        "98.00",
        "98.66",
        "+0.66",
    )


def test_damaged_record_of_a_benchmark_is_one_line(tmp_path):
    (tmp_path / "bench_x").mkdir()
    (tmp_path / "bench_x" / "bench.json").write_text("{")
    with pytest.raises(SqError, match="not a whole record"):
        index.build(tmp_path, [])


def test_figures_keep_six_digits():
    assert page_data.numbers([{"a": 1 / 3}, {"b": 2}]) == {"a": [0.333333, None], "b": [None, 2]}
