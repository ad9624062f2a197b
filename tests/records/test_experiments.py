import pytest
from cli_helpers import CONF, EXPERIMENTS, call, error_line, snapshot

from sq.errors import SqError
from sq.records import experiments

HEADER = """\
# Question  Is it so, and if it is,
#           why?
# Cost      3 runs, about 2 minutes on 2 CPU cores;
#           needs patience
"""


def folder(tmp_path, **names):
    """Make a folder of experiments: file stem, and the name that stands in it."""
    for stem, name in names.items():
        (tmp_path / f"{stem}.yaml").write_text(
            f"{HEADER}name: {name}\n# Not  a part of the header\n"
        )
    return tmp_path


def test_header_goes_on_over_lines_and_ends_with_the_comments():
    found = experiments.header(EXPERIMENTS / "quickstart.yaml")
    assert list(found) == ["Question", "Run", "Cost", "Expect", "Source"]
    assert found["Run"] == "python run.py -cd experiments -cn quickstart"
    assert found["Expect"].startswith("at 4 and 3 bits layer errors")
    assert found["Expect"].endswith("the solvers alone are compared")


def test_what_a_file_says(tmp_path):
    (one,) = experiments.read(folder(tmp_path, warm="warm"))
    assert (one.stem, one.name, one.is_bench) == ("warm", "warm", False)
    assert one.question == "Is it so, and if it is, why?"
    assert one.header["Cost"].endswith("needs patience")
    assert one.seconds == 120.0
    assert set(one.header) == {"Question", "Cost"}


@pytest.mark.parametrize(
    ("cost", "seconds"),
    [
        ("9 runs, about 40 seconds on 2 CPU cores", 40.0),
        ("9 runs, about 1 minute", 60.0),
        ("3 layers = 27 solves, about 1.5 hours; needs SQ_DATA", 5400.0),
        ("9 runs, a while", None),
        ("", None),
    ],
)
def test_cost_in_words(cost, seconds, tmp_path):
    (tmp_path / "a.yaml").write_text(f"# Cost  {cost}\nname: a\n" if cost else "name: a\n")
    assert experiments.read(tmp_path)[0].seconds == seconds


def test_every_experiment_tells_its_cost_and_has_its_own_records():
    found = experiments.read()
    assert len(found) > 20
    assert [one.stem for one in found if one.seconds is None] == []
    parts = {one.stem: one.name for one in found if one.stem != one.name}
    assert parts["cifar10_activations"] == "cifar10"


def test_parts_go_beside_the_first_and_other_questions_nowhere(tmp_path):
    assert len(experiments.read(folder(tmp_path, warm="warm", warm_too="warm"))) == 2
    with pytest.raises(SqError, match=r"cold\.yaml: name: warm, as in .*warm\.yaml") as caught:
        experiments.read(folder(tmp_path, cold="warm"))
    assert "set name: cold" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            {"warmer": "warm", "warm": "warm"},
            r"warmer\.yaml: name: warm, as in warm\.yaml: two questions",
        ),
        ({"warm_a": "warm", "warm_b": "warm"}, r"warm_a\.yaml: name: warm, as in warm_b\.yaml"),
        ({"warm": "cold"}, r"warm\.yaml: name: cold; set name: warm"),
        ({"bench_a": "a"}, r"bench_a\.yaml: name: a; set name: bench_a"),
        (
            {"bench_a": "bench_a", "bench_a_b": "bench_a"},
            r"bench_a_b\.yaml: name: bench_a, as in bench_a\.yaml",
        ),
        ({}, r"no experiments in "),
    ],
)
def test_names_that_make_no_sense(names, message, tmp_path):
    with pytest.raises(SqError, match=message):
        experiments.read(folder(tmp_path, **names))


@pytest.mark.parametrize(
    ("text", "message"),
    [("name: [", "cannot be read as YAML"), ("bits: 3\n", "has no name"), ("", "has no name")],
)
def test_files_that_are_none(text, message, tmp_path):
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(SqError, match=message):
        experiments.read(tmp_path)


QUESTION = "defaults: [config, _self_]\nname: {name}\nhydra: {{mode: {mode}}}\n"


@pytest.mark.parametrize("mode", ["RUN", "MULTIRUN"])
@pytest.mark.parametrize(
    ("stem", "names", "words", "fine"),
    [
        ("warm", {"warm": "warm"}, [], True),
        ("warm_too", {"warm_too": "warm", "warm": "warm"}, [], True),
        ("mine", {"mine": "warm"}, [], False),
        ("mine", {"mine": "warm", "warm": "warm"}, [], False),
        ("warm_too", {"warm_too": "warm"}, [], False),
        ("mine", {"mine": "warm"}, ["name=cold"], True),
        ("mine", {"mine": "runs"}, [], True),
    ],
)
def test_command_keeps_the_records_of_a_question_in_its_own_folder(
    mode, stem, names, words, fine, tmp_path
):
    places = tmp_path / "e"
    places.mkdir()
    for own, name in names.items():
        (places / f"{own}.yaml").write_text(QUESTION.format(name=name, mode=mode))
    done = call(tmp_path, "sweep.dry_run=true", *words, "-cd", str(places), "-cn", stem)
    if fine:
        assert done.returncode == 0, done.stderr
        assert "1 to do" in done.stderr
        return
    line = error_line(done)
    assert f"{stem}.yaml: name: warm" in line
    assert f"set name: {stem}" in line
    assert ("two questions would share results/warm" in line) is ("warm" in names)
    assert snapshot(tmp_path / "results") == {}


def test_default_name_is_that_of_the_config():
    assert experiments.DEFAULT == CONF / "config.yaml"
