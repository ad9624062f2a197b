"""Tables in LaTeX, for the package booktabs: every cell escaped, so that names with underscores compile."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas

ESCAPES = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "+-": r"$\pm$",
    **{mark: f"\\{mark}" for mark in "&%$#_{}"},
}
_SPECIAL = re.compile("|".join(re.escape(mark) for mark in ESCAPES))
_NUMBER = re.compile(r"-|[\[~]?[-+]?\d.*")
_MINUS = re.compile(r"(?<![\w.)}-])-(?=\d)")  # a hyphen is too short for one


def tabular(table: pandas.DataFrame) -> str:
    """Return a table of text cells as a tabular with booktabs' rules; columns of numbers are aligned right."""
    columns = [[str(value) for value in table[name]] for name in table.columns]
    sides = "".join(
        "r" if all(_NUMBER.fullmatch(value) for value in own) else "l" for own in columns
    )
    lines = [
        " & ".join(escape(value) for value in line) + r" \\" for line in zip(*columns, strict=True)
    ]
    head = " & ".join(escape(str(name)) for name in table.columns) + r" \\"
    parts = [
        rf"\begin{{tabular}}{{{sides}}}",
        r"\toprule",
        head,
        r"\midrule",
        *lines,
        r"\bottomrule",
        r"\end{tabular}",
    ]
    return "\n".join(parts) + "\n"


def escape(text: str) -> str:
    r"""Return `text` as LaTeX prints it: ``a_b`` becomes ``a\_b``, ``1 +- 2`` and ``-1`` get signs of mathematics."""
    return _MINUS.sub("$-$", _SPECIAL.sub(lambda found: ESCAPES[found[0]], text))
