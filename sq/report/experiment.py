"""What the files in experiments/ say of an experiment: its question, command, cost and the answer expected."""

from __future__ import annotations

import re
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[2] / "experiments"


def headers(name: str, folder: Path = FOLDER) -> list[dict[str, str]]:
    """Return the headers of the files that keep their records under `name`, that of `name`.yaml first.

    Returns
    -------
    each with `file`, and in small letters the words that a header's parts begin with: `question`, `run`, `cost`,
    `expect`, `source`
    """
    files = [
        f for f in sorted(folder.glob("*.yaml")) if re.search(rf"^name: *{re.escape(name)} *(#|$)", _text(f), re.M)
    ]
    return [{"file": f.name, **header(_text(f))} for f in sorted(files, key=lambda f: f.stem != name)]


def header(text: str) -> dict[str, str]:
    """Return the parts of the comment that begins a file, such as ``# Question  Why?``; a part may go on over lines."""
    parts: dict[str, str] = {}
    word = ""
    for line in text.splitlines():
        if not line.startswith("#"):
            break
        if found := re.match(r"# (\w+) {2,}(.+)", line):
            word = found[1].lower()
            parts[word] = found[2]
        elif word:
            parts[word] += " " + line.removeprefix("#").strip()
    return parts


def _text(file: Path) -> str:
    return file.read_text(encoding="utf-8")
