"""Options stand at any place of a command, and are read as Hydra reads them where they stand first."""

import argparse
import itertools

import pytest
from hydra._internal.utils import get_args_parser

from sq.errors import SqError
from sq.runs.arguments import any_help, options_first

OVERRIDES = ["bits=3,4", "quantizer=rtn,gptq"]


@pytest.mark.parametrize(
    "options",
    [
        ["-m"],
        ["--multirun"],
        ["-cn", "quickstart"],
        ["--config-dir=experiments"],
        ["--cfg", "job"],
        ["-p", "bits=3,4"],
    ],
    ids=" ".join,
)
def test_options_at_any_place_are_read_as_at_the_first(options):
    wanted = vars(get_args_parser().parse_args([*options, *OVERRIDES]))
    for place in range(len(OVERRIDES) + 1):
        words = [*OVERRIDES[:place], *options, *OVERRIDES[place:]]
        assert vars(get_args_parser().parse_args(options_first(words))) == wanted, words


def test_several_options_in_any_order():
    parts = [["-m"], ["-cd", "experiments"], ["-cn", "quickstart"], ["bits=3"], ["seed=1"]]
    wanted = vars(get_args_parser().parse_args([*itertools.chain(*parts)]))
    for order in itertools.permutations(parts):
        found = vars(get_args_parser().parse_args(options_first([*itertools.chain(*order)])))
        assert sorted(found.pop("overrides")) == ["bits=3", "seed=1"], order
        assert found == {name: value for name, value in wanted.items() if name != "overrides"}, (
            order
        )


def test_overrides_keep_their_order_and_those_given_twice_stay():
    assert options_first(["b=1", "-m", "a=2", "b=1"]) == ["-m", "b=1", "a=2", "b=1"]
    assert options_first(["~b", "a=2"]) == ["~b", "a=2"]
    assert options_first([]) == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["bits=3", "--nothing", "seed=1"], "--nothing: no such option"),
        (["bits=3", "-cn"], "--config-name"),
        (["--cfg", "everything"], "invalid choice: 'everything'"),
    ],
)
def test_an_option_that_hydra_does_not_have_is_refused(words, said):
    with pytest.raises(SqError, match="--hydra-help") as refused:
        options_first(words)
    assert said in str(refused.value)


@pytest.fixture
def strict(monkeypatch):
    """Have argparse format each help when it is added, as Python 3.14's does."""
    container = argparse._ActionsContainer
    if hasattr(container, "_check_help"):
        return
    add = argparse.ArgumentParser._add_action

    def check(self, action):
        if action.help and "%" in action.help:  # which an object that is no text cannot be asked
            self._get_formatter()._expand_help(action)

    def checked(self, action):
        self._check_help(action)
        return add(self, action)

    monkeypatch.setattr(container, "_check_help", check, raising=False)
    monkeypatch.setattr(argparse.ArgumentParser, "_add_action", checked)


def test_hydras_parser_is_made_where_helps_are_checked(strict):
    with pytest.raises((TypeError, ValueError)):
        get_args_parser()
    with any_help():
        assert options_first(["bits=3", "-m"]) == ["-m", "bits=3"]
        with pytest.raises((TypeError, ValueError)):
            argparse.ArgumentParser().add_argument("--wrong", help="100%")
    with pytest.raises((TypeError, ValueError)):
        get_args_parser()
