"""The runner of numeric tests under other arithmetic: what it asks for, and what it believes."""

import re

import arithmetic
import pytest

OLDEST = arithmetic.ARITHMETIC[0]
SAID = {
    "aten": "DEFAULT",
    "threads": "2",
    "onednn": "Intel SSE4.1",
    "mkl": "COMPATIBLE",
    "openblas": "Katmai",
}


def test_every_kind_that_was_asked_for_is_there():
    assert {own.aten for own in arithmetic.ARITHMETIC} == set(arithmetic.ATEN)
    assert len({own.onednn for own in arithmetic.ARITHMETIC}) >= 2
    assert {own.threads for own in arithmetic.ARITHMETIC} == {1, 2}
    assert "COMPATIBLE" in {own.mkl for own in arithmetic.ARITHMETIC}


def test_settings_without_effect_are_noticed():
    assert arithmetic.unheard(OLDEST, SAID) == []
    for name, other in {
        "aten": "AVX2",
        "threads": "1",
        "onednn": "Intel AVX2",
        "mkl": "OFF",
        "openblas": "Zen",
    }.items():
        (wrong,) = arithmetic.unheard(OLDEST, SAID | {name: other})
        assert wrong.startswith(f"{name} is {other!r}")
    assert arithmetic.unheard(OLDEST, {"aten": "DEFAULT"}) == [], (
        "a library that is not there says nothing"
    )


def test_libraries_hear_what_they_are_told():
    told = arithmetic.answers(OLDEST.environment())
    if told["aten"] not in arithmetic.ATEN:
        pytest.skip(f"PyTorch calls this CPU {told['aten']}")
    assert set(told) >= {"aten", "threads"}
    assert arithmetic.unheard(OLDEST, told) == []


@pytest.mark.parametrize("best", arithmetic.ATEN)
def test_what_the_suite_uses_by_itself_is_left_out_beside_it(best, monkeypatch, capsys):
    monkeypatch.setattr(arithmetic, "answers", lambda environment: {"aten": best})
    monkeypatch.setattr(arithmetic, "unheard", lambda row, reported: [])
    monkeypatch.delenv("SQ_TEST_THREADS", raising=False)
    alone = [row.aten for row in arithmetic.rows_to_run(beside_suite=False)]
    beside = [row.aten for row in arithmetic.rows_to_run(beside_suite=True)]
    assert alone == list(arithmetic.ATEN[: arithmetic.ATEN.index(best) + 1])
    # The oldest runs with two threads, which the suite does not.
    assert beside == [aten for aten in alone if aten != best or aten == "DEFAULT"]
    assert "is what the suite uses" in capsys.readouterr().out or best == "DEFAULT"


def test_the_suite_has_as_many_threads_as_is_said():
    text = (arithmetic.TESTS / "conftest.py").read_text()
    assert f'os.environ.get("SQ_TEST_THREADS", "{arithmetic.SUITE_THREADS}")' in text


def test_files_are_those_that_compute_and_compare():
    names = arithmetic.files()
    assert {
        "tests/hessian/test_gram.py",
        "tests/grid/test_uniform.py",
        "tests/solver/test_contract.py",
    } <= set(names)
    assert not {"tests/test_readme.py", "tests/report/test_page.py"} & set(names)
    uses = re.compile("^from tolerances import", re.MULTILINE)
    users = [
        f
        for f in arithmetic.TESTS.rglob("test_*.py")
        if uses.search(f.read_text())
        and not arithmetic.STARTS_RUNS.search(f.read_text())
        and f.name not in arithmetic.WHOLE_NETWORKS
        and f.relative_to(arithmetic.TESTS).parts[0] not in arithmetic.APART
    ]
    assert {str(f.relative_to(arithmetic.ROOT)) for f in users} <= set(names)


def test_files_of_whole_networks_are_there():
    names = {f.name for f in arithmetic.TESTS.rglob("test_*.py")}
    assert names >= arithmetic.WHOLE_NETWORKS


def test_no_file_is_left_out_by_marks():
    marked = []
    for name in arithmetic.files():
        text = (arithmetic.ROOT / name).read_text()
        assert "pytestmark" not in text or "one_arithmetic" not in text
        marks = re.findall(r'^@pytest\.mark\.one_arithmetic\("(.+)"\)$', text, re.MULTILINE)
        assert all(len(reason) > 20 for reason in marks), name
        assert len(marks) < len(re.findall(r"^def test_", text, re.MULTILINE)), name
        marked += marks
    assert marked
