"""What is shown is shown as it is: causes hold brackets and colons, which mean nothing here."""

import io

import pytest
from rich.console import Console
from rich.table import Table

from sq import console

CAUSES = [
    "[enforce fail at alloc_cpu.cpp:117] err == 0. can't allocate memory",
    "no file in [/data/a, /data/b]",  # a closing tag of nothing, to rich
    "conf :warning: [bold]x[/bold]",
]


@pytest.mark.parametrize("cause", CAUSES)
def test_tables_and_lines_show_causes_as_they_are(cause, capsys):
    table = Table(title=cause)
    table.add_column(cause)
    table.add_row(cause)
    console.out.print(table)
    console.say(cause)
    said = capsys.readouterr()
    assert said.out.count(cause) == 3
    assert said.err == f"{cause}\n"


@pytest.mark.parametrize("what", CAUSES)
def test_progress_bar_shows_its_description_as_it_is(what, monkeypatch):
    screen = Console(force_terminal=True, file=io.StringIO(), width=200)
    monkeypatch.setattr(console, "err", screen)
    assert list(console.track([1, 2], what)) == [1, 2]
    assert what in screen.file.getvalue()
