from sq.report import experiment

HEADER = """# Question  Why
#           not?
# Run       python run.py -cn {name}
# Cost      2 runs
defaults: [config]
# Expect    nothing of this
name: {name}
"""


def test_headers_are_those_of_all_files_of_the_name(tmp_path):
    for stem, name in (("a_more", "a"), ("a", "a  # why"), ("b", "b"), ("aa", "aa")):
        (tmp_path / f"{stem}.yaml").write_text(HEADER.replace("name: {name}", f"name: {name}"))
    assert [own["file"] for own in experiment.headers("a", tmp_path)] == ["a.yaml", "a_more.yaml"]
    assert experiment.headers("c", tmp_path) == []
    (own,) = experiment.headers("b", tmp_path)
    told = {"question": "Why not?", "run": "python run.py -cn {name}", "cost": "2 runs"}
    assert own == {"file": "b.yaml", **told}, "what follows the header is no part of it"


def test_committed_experiments_are_found():
    found = experiment.headers("cifar10")
    assert [own["file"] for own in found] == ["cifar10.yaml", "cifar10_activations.yaml"]
    assert all({"question", "run", "cost", "expect", "source"} <= set(own) for own in found)
