"""For the tests of pages: real records, with made-up failures among them, and the pages made of them."""

import json
import shutil
from html.parser import HTMLParser
from pathlib import Path

from sq.report import __main__ as report

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "results"
NASTY = "RuntimeError: </script><script>document.title = 'broken'</script> <!-- <b>&amp;</b> \u2028"
FAILED = ("results", "layers", "sensitivity", "statistics", "seconds", "peak_bytes")


def copied(folder: Path, name: str = "quickstart") -> Path:
    """Copy the records of an experiment to `folder`/`name`; return that folder."""
    target = folder / name
    target.mkdir(parents=True)
    for file in (RESULTS / name).glob("*.json"):
        shutil.copy(file, target)
    return target


def fail(file: Path, error: str) -> str:
    """Turn the record in `file` into that of a run that failed; return its key."""
    made = json.loads(file.read_text())
    made = {name: value for name, value in made.items() if name not in FAILED}
    made |= {
        "status": "failed",
        "error": error,
        "traceback": f"Traceback (most recent call last):\n  here\n{error}",
    }
    file.write_text(json.dumps(made))
    return made["key"]


def with_failures(folder: Path, count: int = 3, name: str = "quickstart") -> list[str]:
    """Copy an experiment to `folder`, let `count` of its runs fail, the last with another cause; return their keys."""
    files = sorted(copied(folder, name).glob("*.json"))[:count]
    errors = [NASTY] * (count - 1) + ["SqError: layer stem.0 is not positive definite"]
    return [fail(file, error) for file, error in zip(files, errors, strict=True)]


class Page(HTMLParser):
    """A page as a browser takes it apart: its elements, and the text of each script."""

    def __init__(self, file: Path):
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: dict[str | None, str] = {}
        self.words: list[str] = []
        self._inside: str | None = None
        self.feed(file.read_text(encoding="utf-8"))
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag in ("script", "style"):
            self._inside = tag
            if tag == "script":
                self._id = dict(attrs).get("id")
                self.scripts[self._id] = ""

    def handle_endtag(self, tag):
        if tag == self._inside:
            self._inside = None

    def handle_data(self, data):
        if self._inside == "script":
            self.scripts[self._id] += data
        elif self._inside is None:
            self.words.append(data)

    def json(self, name: str):
        return json.loads(self.scripts[name])

    def __repr__(self) -> str:
        return f"Page of {len(self.tags)} elements"


def built(folder: Path, name: str = "quickstart") -> Page:
    """Report the experiment in `folder` and return its page."""
    report.build(name, folder)
    return Page(folder / name / "index.html")


def at(column: dict, run: int):
    """Return what a run has in a column; `KeyError` if nothing."""
    if "all" in column:
        return column["all"]
    if column["of"][run] < 0:
        raise KeyError(run)
    return column["values"][column["of"][run]]
