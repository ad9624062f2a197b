"""``sq completion SHELL``: what a shell needs to complete the words of sq, by what Hydra knows of its settings.

Hydra's own ``--shell-completion`` knows one program with one command line; sq has a command before
that. The shell asks ``sq completion query``, with the line up to the cursor in COMP_LINE, and gets
one candidate a line.
"""

from __future__ import annotations

import argparse
import importlib
import io
import os
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from unittest.mock import patch

from sq.commands import COMMANDS, OPTIONS
from sq.core import closed_pipe

BASH = """_sq_completion() {
    local IFS=$'\\n' line="${COMP_LINE:0:COMP_POINT}"
    COMPREPLY=($(COMP_LINE="$line" COMP_WORDBREAKS="$COMP_WORDBREAKS" sq completion query 2>/dev/null))
}
complete -o nospace -o default -F _sq_completion sq
"""
ZSH = """#compdef sq
_sq() {
    local -a found
    found=("${(@f)$(COMP_LINE="${(j: :)words[1,CURRENT-1]} $PREFIX" sq completion query 2>/dev/null)}")
    compadd -S '' -- ${found:#}
}
compdef _sq sq
"""
FISH = """complete -c sq -f -a '(COMP_LINE=(commandline -cp | string collect) sq completion query 2>/dev/null)'
"""
SCRIPTS = {"bash": BASH, "zsh": ZSH, "fish": FISH}
HELP = """To have it in every session:
  bash  echo 'eval "$(sq completion bash)"' >>~/.bashrc
  zsh   echo 'eval "$(sq completion zsh)"' >>~/.zshrc (after compinit)
  fish  sq completion fish >~/.config/fish/completions/sq.fish"""
HYDRA = ("run", "sweep")  # commands whose words are Hydra's
OF_FILES = {"--config-dir": "dir", "-cd": "dir", "--config-path": "dir", "-cp": "dir"}
NAMED = ("--config-name", "-cn")


def parser(prog: str) -> argparse.ArgumentParser:
    """Return the parser of its command line."""
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Print what a shell needs to complete the words of sq.",
        epilog=HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "shell", choices=[*SCRIPTS, "query"], help="query: candidates for the line in COMP_LINE"
    )
    return parser


@closed_pipe.quiet
def main(words: list[str] | None = None, prog: str = "python -m sq completion") -> int:
    """Parse the command line, print a script or candidates; return the exit code."""
    shell = parser(prog).parse_args(words).shell
    if shell in SCRIPTS:
        sys.stdout.write(SCRIPTS[shell])
        return 0
    line = os.environ.get("COMP_LINE", "")
    found = candidates(line)
    sys.stdout.writelines(f"{word}\n" for word in _after_break(found, line))
    return 0


def candidates(line: str) -> list[str]:
    """Return what the last word of a command `line` may become, sorted; that word is empty after a space."""
    before, word = _split(line)
    if len(before) <= 1:
        return _starting(word, [*COMMANDS, *OPTIONS])
    command, rest = before[1], before[2:]
    if command in HYDRA:
        return _of_hydra(rest, word)
    if command not in COMMANDS:
        return []
    return _of_parser(command, rest, word)


def _split(line: str) -> tuple[list[str], str]:
    """Return the finished words of `line`, and the one that is being typed."""
    words = line.split()
    return (words, "") if not words or line[-1].isspace() else (words[:-1], words[-1])


def _starting(word: str, choices: list[str]) -> list[str]:
    return sorted(choice for choice in choices if choice.startswith(word))


def _of_parser(command: str, rest: list[str], word: str) -> list[str]:
    """Return candidates of a command with a parser of its own: its options, and the experiments it can name."""
    from sq.records import experiments

    module = importlib.import_module(COMMANDS[command].target.partition(":")[0])
    actions = module.parser(command)._actions
    if word.startswith("-"):
        return _starting(word, [option for one in actions for option in one.option_strings])
    last = next((one for one in actions if rest and rest[-1] in one.option_strings), None)
    if last is not None and last.nargs != 0:  # the value of an option
        return _starting(word, list(last.choices)) if last.choices else []
    positional = next((one for one in actions if not one.option_strings), None)
    if positional is None:
        return []
    if positional.choices:
        return _starting(word, list(positional.choices))
    every = experiments.listed()
    if command == "bench":
        return _starting(
            word, [one.stem.removeprefix(experiments.BENCH) for one in every if one.is_bench]
        )
    return _starting(word, sorted({one.name for one in every}))


def _of_hydra(rest: list[str], word: str) -> list[str]:
    """Return candidates of a command line of Hydra's: settings and choices, and experiments for ``-cn``."""
    if rest and rest[-1] in NAMED:
        return _starting(word, _experiments(rest))
    if rest and rest[-1] in OF_FILES:
        return []  # the shell's own business
    from sq.runs.arguments import parser

    if word.startswith("-"):
        return _starting(
            word, [option for one in parser()._actions for option in one.option_strings]
        )
    options = parser().parse_args(_without_settings(rest))
    flags = [
        text
        for flag, value in (
            ("--config-name", options.config_name),
            ("--config-dir", options.config_dir),
        )
        if value
        for text in (flag, value)
    ]
    # Of a list, as sweeps have them, the last item is typed: quantizer=rtn,g...
    start, comma, item = word.rpartition(",")
    asked = f"{start.partition('=')[0]}={item}" if comma and "=" in start else word
    settings = [own for own in rest if "=" in own and "," not in own]
    found = _asked_of_hydra(flags, " ".join(["sq", *settings, asked]))
    if asked == word:
        return found
    return [f"{start},{one.partition('=')[2]}" for one in found]


def _experiments(rest: list[str]) -> list[str]:
    """Return the names that ``-cn`` may have: of the folder given by ``-cd``, else of those that come with sq."""
    from sq.core import paths

    given = [rest[at + 1] for at, one in enumerate(rest[:-1]) if one in ("-cd", "--config-dir")]
    folder = Path(given[-1]) if given else paths.EXPERIMENTS
    return [file.stem for file in folder.glob("*.yaml")]


def _without_settings(words: list[str]) -> list[str]:
    """Return the options among `words`, with their values."""
    return [
        word
        for at, word in enumerate(words)
        if word.startswith("-") or (at and words[at - 1] in (*NAMED, *OF_FILES))
    ]


def _asked_of_hydra(flags: list[str], line: str) -> list[str]:
    from sq import cli

    said = io.StringIO()
    with (
        patch.object(sys, "argv", ["sq", *flags, "--shell-completion", "query=fish"]),
        patch.dict(os.environ, {"COMP_LINE": line}),
        redirect_stdout(said),
        redirect_stderr(io.StringIO()),
    ):
        try:
            cli.main()
        except SystemExit:  # words that Hydra refuses: there is nothing to propose
            return []
    words = [word for word in said.getvalue().splitlines() if word and "._" not in word]
    # A group that holds choices and a folder of others comes bare: its choices are what is wanted.
    return [
        f"{word}=" if word.isidentifier() and "=" not in line.split()[-1] else word
        for word in words
    ]


def _after_break(found: list[str], line: str) -> list[str]:
    """Return of each candidate what follows the last character at which bash breaks words, where the line has one."""
    _, word = _split(line)
    breaks = [char for char in "=:," if char in os.environ.get("COMP_WORDBREAKS", "")]
    cut = max((word.rfind(char) + 1 for char in breaks), default=0)
    return [one[cut:] for one in found]
