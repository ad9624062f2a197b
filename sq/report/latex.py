"""Tables in LaTeX, for the package booktabs; all cells are escaped."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas

ESCAPES = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "+-": r"$\pm$",  # between mean and standard deviation
    **{mark: f"\\{mark}" for mark in "&%$#_{}"},
}
_SPECIAL = re.compile("|".join(re.escape(mark) for mark in ESCAPES))
# A cell of a number: "-" stands for none, "~" for an extrapolated one, "[" begins an interval.
_NUMBER = re.compile(r"-|[\[~]?[-+]?\d.*")
_MINUS = re.compile(r"(?<![\w.)}-])-(?=\d)")  # of a number, not the hyphen of a word


def tabular(table: pandas.DataFrame) -> str:
    """Return a table of text cells as a tabular; columns of numbers are aligned right."""
    columns = []
    sides = ""
    for name in table.columns:
        cells = [str(value) for value in table[name]]
        is_numeric = all(_NUMBER.fullmatch(cell) for cell in cells)
        sides += "r" if is_numeric else "l"
        columns.append(cells)
    lines = [rf"\begin{{tabular}}{{{sides}}}", r"\toprule", _line(table.columns), r"\midrule"]
    lines += map(_line, zip(*columns, strict=True))
    lines += [r"\bottomrule", r"\end{tabular}"]
    return "\n".join(lines) + "\n"


def _line(cells: Iterable[Any]) -> str:
    """Return one line of a tabular."""
    return " & ".join(escape(str(cell)) for cell in cells) + r" \\"


def escape(text: str) -> str:
    r"""Return `text` escaped: ``a_b`` as ``a\_b``, ``1 +- 2`` and ``-1`` in mathematics."""
    escaped = _SPECIAL.sub(lambda match: ESCAPES[match[0]], text)
    return _MINUS.sub("$-$", escaped)
