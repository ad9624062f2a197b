import errno
import hashlib
import os
import shutil
from pathlib import Path

import pytest

from sq.errors import SqError
from sq.records import record
from sq.report import __main__ as report

ROOT = Path(__file__).parents[2]
QUICKSTART = ROOT / "results" / "quickstart"


def copied(folder: Path) -> Path:
    folder.mkdir(parents=True)
    for file in QUICKSTART.glob("*.json"):
        shutil.copy(file, folder)
    return folder


def digests(files: list[Path]) -> list[tuple[str, str]]:
    return [(file.name, hashlib.sha256(file.read_bytes()).hexdigest()) for file in files]


def test_reports_come_from_records_alone_and_are_the_same_each_time(tmp_path):
    first = report.build("a", copied(tmp_path / "1" / "a").parent)
    second = report.build("a", copied(tmp_path / "2" / "a").parent)
    assert digests(first) == digests(second)
    names = {f.name for f in first}
    assert {"table.md", "table.tex", "table.csv", "figure.svg", "figure.pdf"} <= names
    assert {"sensitivity_digits_resnet.md", "sensitivity_digits_resnet.svg", "index.html"} <= names


def test_committed_report_is_what_its_records_give(tmp_path):
    built = report.build("quickstart", copied(tmp_path / "quickstart").parent)
    # Pictures depend on matplotlib's version; texts do not.
    for file in built:
        if file.suffix in (".md", ".csv", ".tex"):
            assert file.read_text() == (QUICKSTART / file.name).read_text(), file.name


def test_readme_table_is_the_committed_one():
    text = (ROOT / "README.md").read_text()
    inside = text.split("<!-- table: quickstart -->")[1].split("<!-- end -->")[0]
    assert inside.strip() == (QUICKSTART / "table.md").read_text().strip()


def test_quickstart_answers_its_question():
    from sq.report import table

    rows = {
        (r["labels"]["method"], r["labels"]["bits"]): r
        for r in table.rows(record.read_all(QUICKSTART))
    }
    assert len(rows) == 15
    assert {r["runs"] for r in rows.values()} == {3}

    def mean(method, bits, what):
        values = rows[method, bits][what]
        return sum(values) / len(values)

    for bits in (4, 3):
        errors = {
            method: mean(method, bits, "relative_error")
            for method in ("rtn", "gptq", "sensiquant", "obq")
        }
        assert errors["sensiquant"] <= 1.1 * errors["obq"]
        assert errors["rtn"] > 2 * max(errors["gptq"], errors["sensiquant"], errors["obq"])
        assert mean("sensiquant", bits, "speedup") >= 10
    for bits in (4, 3, 2):
        assert mean("sensiquant_plus", bits, "relative_error") <= mean(
            "obq", bits, "relative_error"
        )
        assert mean("sensiquant_plus", bits, "speedup") >= 5
    assert mean("sensiquant", 4, "drop") <= 0.3


def test_quickstart_records_name_a_clean_commit():
    for found in record.read_all(QUICKSTART):
        assert found["status"] == "done"
        assert found["provenance"]["commit"]
        assert found["provenance"]["dirty"] is False


def test_unknown_names_and_bad_records_are_one_line_errors(tmp_path, capsys):
    (tmp_path / "quickstart").mkdir()
    assert report.main(["quickstrat", "--results", str(tmp_path)]) == 1
    assert "nearest: quickstart" in capsys.readouterr().err
    assert report.main(["quickstart", "--results", str(tmp_path)]) == 1
    assert "run the experiment first" in capsys.readouterr().err
    (tmp_path / "quickstart" / "cut.json").write_text('{"record": 1, "key"')
    assert report.main(["quickstart", "--results", str(tmp_path)]) == 1
    assert "cut.json is not a whole record" in capsys.readouterr().err


def test_insert_needs_marks(tmp_path):
    file = tmp_path / "page.md"
    file.write_text("a\n<!-- table: t -->\nold\n<!-- end -->\nb\n")
    report.insert(file, "t", "| new |\n")
    report.insert(file, "t", "| new |\n")
    assert file.read_text() == "a\n<!-- table: t -->\n\n| new |\n\n<!-- end -->\nb\n"
    with pytest.raises(SqError, match="no marks <!-- table: other --> and <!-- end -->"):
        report.insert(file, "other", "")


def test_insert_is_whole_or_not_at_all(tmp_path, monkeypatch):
    file, link = tmp_path / "page.md", tmp_path / "link.md"
    file.write_text("<!-- table: t -->\nold\n<!-- end -->\n")
    link.symlink_to(file)
    report.insert(link, "t", "new")
    assert link.is_symlink()
    before = file.read_text()
    assert "new" in before

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(SqError, match="No space left"):
        report.insert(file, "t", "newer")
    assert file.read_text() == before
    assert {own.name for own in tmp_path.iterdir()} == {"page.md", "link.md"}


@pytest.mark.parametrize("content", [None, b"\xff\xfe\x00", b"no marks"])
def test_a_file_that_takes_no_table_is_one_line_and_nothing_is_built(content, tmp_path, capsys):
    folder, into = copied(tmp_path / "quickstart"), tmp_path / "MISSING.md"
    if content is not None:
        into.write_bytes(content)
    before = sorted(folder.iterdir())
    assert report.main(["quickstart", "--results", str(tmp_path), "--into", str(into)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"sq: {into} ")
    assert sorted(folder.iterdir()) == before
