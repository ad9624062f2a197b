"""LaTeX by its rules: what every cell would print, without a compiler."""

import re

import pandas
import pytest
from report_pages import RESULTS, copied

from sq.records import record
from sq.report import latex, table
from sq.report.__main__ import build

COMMANDS = {"textbackslash", "textasciitilde", "textasciicircum", "textless", "textgreater", "pm"}


def compiles(text):
    """Check that text in a paragraph has no bare special character; return the mathematics in it."""
    mathematics = re.findall(r"(?<!\\)\$(.*?)(?<!\\)\$", text)
    rest = re.sub(r"(?<!\\)\$.*?(?<!\\)\$", "", text)
    assert set(re.findall(r"\\([a-zA-Z]+)", text)) <= COMMANDS
    rest = re.sub(r"\\[a-zA-Z]+(\{\})?|\\[&%$#_{}]", "", rest)
    assert not re.search(r"[\\&%$#_{}~^<>]", rest), text
    return mathematics


@pytest.mark.parametrize(
    ("text", "printed"),
    [
        ("sensiquant_plus", r"sensiquant\_plus"),
        ("95 %", r"95 \%"),
        ("1.00 +- 0.10", r"1.00 $\pm$ 0.10"),
        ("-0.10 +- 0.30", r"$-$0.10 $\pm$ 0.30"),
        ("[-0.33, 0.33]", r"[$-$0.33, 0.33]"),
        ("a_b & c # {d} ~ ^ \\ $", None),
        ("k=-1 rows^2 <x>", None),
        ("2e-05", "2e-05"),
        ("per-channel 8-bit", "per-channel 8-bit"),
        ("-", "-"),
    ],
)
def test_cells_are_escaped(text, printed):
    made = latex.escape(text)
    assert printed is None or made == printed
    assert set(compiles(made)) <= {r"\pm", "-"}


def test_tabular_has_the_rules_of_booktabs():
    made = latex.tabular(
        pandas.DataFrame({"method": ["obq", "a_b"], "top-1 %": ["-", "1.0 +- 0.1"]})
    )
    assert made.splitlines() == [
        r"\begin{tabular}{lr}",
        r"\toprule",
        r"method & top-1 \% \\",
        r"\midrule",
        r"obq & - \\",
        r"a\_b & 1.0 $\pm$ 0.1 \\",
        r"\bottomrule",
        r"\end{tabular}",
    ]


@pytest.mark.parametrize("name", ["quickstart", "cifar10", "rankings"])
def test_tables_of_real_records_compile(name):
    made = table.build(record.read_all(RESULTS / name))
    head, *lines = [line for line in latex.tabular(made).splitlines() if line.endswith(r"\\")]
    assert len(lines) == len(made)
    for line in (head, *lines):
        cells = re.split(r"(?<!\\)&", line.removesuffix(r"\\"))
        assert len(cells) == len(made.columns)
        for cell in cells:
            compiles(cell)
    assert any(r"\_" in line for line in lines) or name == "rankings"


def test_report_writes_it(tmp_path):
    copied(tmp_path)
    build("quickstart", tmp_path)
    assert (
        r"sensiquant\_plus & 4 & 99.11 $\pm$ 0.10"
        in (tmp_path / "quickstart" / "table.tex").read_text()
    )
