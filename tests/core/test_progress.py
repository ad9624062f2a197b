"""What is shown is shown as it is: causes hold brackets and colons, which mean nothing here."""

import io
import threading

import pytest
from rich.console import Console
from rich.table import Table

from sq.core import progress

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
    progress.out.print(table)
    progress.say(cause)
    said = capsys.readouterr()
    assert said.out.count(cause) == 3
    assert said.err == f"{cause}\n"


@pytest.mark.parametrize("what", CAUSES)
def test_progress_bar_shows_its_description_as_it_is(what, monkeypatch):
    screen = Console(force_terminal=True, file=io.StringIO(), width=200)
    monkeypatch.setattr(progress, "err", screen)
    assert list(progress.track([1, 2], what)) == [1, 2]
    assert what in screen.file.getvalue()


@pytest.fixture
def screen(monkeypatch):
    screen = Console(force_terminal=True, file=io.StringIO(), width=200)
    monkeypatch.setattr(progress, "err", screen)
    return screen


def test_loops_of_two_threads_share_the_one_place_for_a_bar(screen):
    together = threading.Barrier(2)
    results, errors = {}, []

    def items():
        for number in range(3):
            together.wait(20)  # both are in their loops
            yield number

    def loop(what):
        try:
            results[what] = list(progress.track(items(), what, 3))
        except BaseException as error:
            errors.append(error)

    for _ in range(10):
        results.clear()
        crew = [threading.Thread(target=loop, args=(what,)) for what in ("left loop", "right loop")]
        for thread in crew:
            thread.start()
        for thread in crew:
            thread.join(60)
        assert errors == []
        assert results == {"left loop": [0, 1, 2], "right loop": [0, 1, 2]}
    assert list(progress.track([1], "later loop")) == [1]
    assert "later loop" in screen.file.getvalue()


def test_loop_within_a_loop_shows_nothing(screen):
    assert [
        list(progress.track([1, 2], "inner loop")) for _ in progress.track([1, 2], "outer loop")
    ] == [[1, 2]] * 2
    assert "outer loop" in screen.file.getvalue()
    assert "inner loop" not in screen.file.getvalue()


def raise_within(loop):
    for item in loop:
        raise KeyError(item)


def test_loops_after_one_that_failed_are_shown(screen):
    def failing():
        yield 1
        raise ValueError("in the items")

    with pytest.raises(ValueError, match="in the items"):
        list(progress.track(failing(), "failing items"))
    with pytest.raises(KeyError):
        raise_within(progress.track([1, 2], "failing body"))
    loop = progress.track([1, 2], "left alone")
    next(loop)
    loop.close()
    assert list(progress.track([1], "shown again")) == [1]
    assert "shown again" in screen.file.getvalue()


def test_loop_begun_in_one_thread_may_end_in_another(screen):
    loop = progress.track([1, 2], "moved loop")
    assert next(loop) == 1
    rest = []
    thread = threading.Thread(target=lambda: rest.extend(loop))
    thread.start()
    thread.join(20)
    assert rest == [2]
    assert list(progress.track([1], "shown again")) == [1]
    assert "shown again" in screen.file.getvalue()
