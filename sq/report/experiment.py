"""What the files in experiments/ say of an experiment: its question, command, cost and the answer expected."""

from __future__ import annotations

import re
from pathlib import Path

from sq import experiments


def headers(name: str, folder: Path = experiments.FOLDER) -> list[dict[str, str]]:
    """Return the headers of the files that keep their records under `name`, that of `name`.yaml first.

    Returns
    -------
    each with `file`, and in small letters the words that a header's parts begin with: `question`, `run`, `cost`,
    `expect`, `source`
    """
    own = re.compile(rf"^name: *{re.escape(name)} *(#|$)", re.MULTILINE)
    files = [file for file in sorted(folder.glob("*.yaml")) if own.search(file.read_text(encoding="utf-8"))]
    return [
        {"file": file.name, **{word.lower(): text for word, text in experiments.header(file).items()}}
        for file in sorted(files, key=lambda file: file.stem != name)
    ]
