from report_pages import copied

from sq.records import experiments
from sq.report import __main__ as report
from sq.report import page

HEADER = """# Question  Why
#           not?
# Run       python run.py -cn {name}
# Cost      2 runs
defaults: [config]
# Expect    nothing of this
name: {name}
"""


def test_headers_are_those_of_all_files_of_the_name(tmp_path):
    # As YAML reads them, not as they look.
    for stem, name in (("a_more", '"a"'), ("a", "a  # why"), ("b", "b"), ("aa", "aa")):
        (tmp_path / f"{stem}.yaml").write_text(HEADER.replace("name: {name}", f"name: {name}"))
    found = experiments.listed(tmp_path)
    assert [own["file"] for own in page.headers("a", found)] == ["a.yaml", "a_more.yaml"]
    assert page.headers("c", found) == []
    (own,) = page.headers("b", found)
    told = {"question": "Why not?", "run": "python run.py -cn {name}", "cost": "2 runs"}
    assert own == {"file": "b.yaml", **told}, "what follows the header is no part of it"


def test_committed_experiments_are_found():
    found = page.headers("cifar10", experiments.listed())
    assert [own["file"] for own in found] == ["cifar10.yaml", "cifar10_activations.yaml"]
    assert all({"question", "run", "cost", "expect", "source"} <= set(own) for own in found)


def test_page_has_the_question_of_the_folder_that_was_asked_about(tmp_path):
    (tmp_path / "asked").mkdir()
    # Without all the words a header may have.
    (tmp_path / "asked" / "quickstart.yaml").write_text("# Question  Why not?\nname: quickstart\n")
    (tmp_path / "asked" / "quickstart_more.yaml").write_text("name: quickstart\n")
    copied(tmp_path / "results")
    words = [
        "quickstart",
        "--results",
        str(tmp_path / "results"),
        "--experiments",
        str(tmp_path / "asked"),
    ]
    assert report.main(words) == 0
    text = (tmp_path / "results" / "quickstart" / "index.html").read_text()
    assert "Why not?" in text
    assert "quickstart_more.yaml" in text
    assert page.headers("quickstart", experiments.listed())[0]["question"] not in text
