"""Packages in layers: imports go down, so that each can be read, and changed, without those above it."""

import ast
from pathlib import Path

import pytest

SQ = Path(__file__).resolve().parents[1] / "sq"

# Lowest first. A package imports from lines above its own, or from itself; those on one line do not
# import each other.
LAYERS = (
    ("errors",),
    ("core",),  # this machine and its files, without PyTorch
    ("config", "types"),
    ("records", "runtime", "grid"),
    ("storage",),
    ("solver", "network", "dataset"),
    ("allocation", "hessian", "correction", "activation", "model", "calibration"),
    ("learning", "trials", "sensitivity"),
    ("evaluation", "training"),
    ("quantizer", "report", "metric", "export"),
    ("latency", "tracker", "pipeline"),
    ("runs",),
    ("cli", "api"),
    ("bench",),
    ("commands", "reproduce"),
    ("__init__", "__main__", "status", "track"),
)
LAYER = {package: number for number, line in enumerate(LAYERS) for package in line}
ROOT_FILES = {
    "__init__.py",
    "__main__.py",
    "api.py",
    "cli.py",
    "errors.py",
    "pipeline.py",
    "py.typed",
}
# `python -m sq.status` and `python -m sq.track`, as before there was `sq`
ROOT_FILES |= {"status.py", "track.py"}
FILES = sorted(SQ.rglob("*.py"))


def package_of(file):
    """Return the name of the package, or of the file at the root, that `file` belongs to."""
    return file.relative_to(SQ).with_suffix("").parts[0]


def imported(tree):
    """Yield the line and the package of each import from sq in `tree`, within functions too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = (
                [f"{node.module}.{alias.name}" for alias in node.names]
                if node.module == "sq"
                else [node.module]
            )
        else:
            continue
        for name in names:
            parts = (name or "").split(".")
            if parts[0] == "sq":
                yield node.lineno, parts[1] if len(parts) > 1 and parts[1] in LAYER else "__init__"


def upward(file):
    """Return a line for each import of `file` that does not go down."""
    own = package_of(file)
    return [
        f"{file.relative_to(SQ.parent)}:{line}: {own} imports {other}, which is not below it: move what is shared down "
        f"to a lower package, or the importing code up (layers: {Path(__file__).name})"
        for line, other in imported(ast.parse(file.read_text()))
        # `from sq import __version__` needs nothing that the package itself imports.
        if other not in (own, "__init__") and LAYER[other] >= LAYER[own]
    ]


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(SQ)))
def test_imports_go_down(file):
    assert package_of(file) in LAYER, f"add {package_of(file)} to the layers"
    assert upward(file) == []


def test_an_import_that_goes_up_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(f"{__name__}.SQ", tmp_path / "sq")
    file = tmp_path / "sq" / "core" / "files.py"
    file.parent.mkdir(parents=True)
    file.write_text(
        "from sq import runs\n\n\ndef f():\n    import sq.types.costs\n    from sq.errors import SqError\n"
    )
    assert [line.partition(", which")[0] for line in upward(file)] == [
        "sq/core/files.py:1: core imports runs",
        "sq/core/files.py:5: core imports types",
    ]


def test_every_layer_is_there():
    assert {package_of(file) for file in FILES} == set(LAYER)


def test_only_entry_points_stand_at_the_root():
    files = {path.name for path in SQ.iterdir() if path.is_file()}
    assert files == ROOT_FILES, "put the code into a package named by its purpose"
