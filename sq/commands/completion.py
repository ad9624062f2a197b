"""``sq completion SHELL``: scripts by which a shell completes command lines of sq.

Hydra's own ``--shell-completion`` is for a program with one command line; sq has a command before
that. The shell calls ``sq completion query``, with the line up to the cursor in COMP_LINE, and gets
one candidate a line.
"""

from __future__ import annotations

import argparse
import importlib
import io
import itertools
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
HYDRA_COMMANDS = ("run", "sweep")  # with the command line of Hydra
FOLDER_OPTIONS = {"--config-dir": "dir", "-cd": "dir", "--config-path": "dir", "-cp": "dir"}
NAME_OPTIONS = ("--config-name", "-cn")


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
def main(arguments: list[str] | None = None, prog: str = "python -m sq completion") -> int:
    """Parse the command line, print a script or candidates; return the exit code."""
    shell = parser(prog).parse_args(arguments).shell
    if shell in SCRIPTS:
        sys.stdout.write(SCRIPTS[shell])
        return 0
    line = os.environ.get("COMP_LINE", "")
    sys.stdout.writelines(f"{word}\n" for word in _after_break(candidates(line), line))
    return 0


def candidates(line: str) -> list[str]:
    """Return, sorted, what the last word of a command `line` may become."""
    before, word = _split(line)
    if len(before) <= 1:
        return _starting(word, [*COMMANDS, *OPTIONS])
    command, rest = before[1], before[2:]
    if command in HYDRA_COMMANDS:
        return _of_hydra(rest, word)
    if command not in COMMANDS:
        return []
    return _of_parser(command, rest, word)


def _split(line: str) -> tuple[list[str], str]:
    """Return the complete words of `line`, and the one that is being typed, "" after a space."""
    words = line.split()
    if not words or line[-1].isspace():
        return words, ""
    return words[:-1], words[-1]


def _starting(word: str, choices: list[str]) -> list[str]:
    return sorted(choice for choice in choices if choice.startswith(word))


def _of_parser(command: str, rest: list[str], word: str) -> list[str]:
    """Return candidates of a command with its own parser: options, values and experiments."""
    module = importlib.import_module(COMMANDS[command].target.partition(":")[0])
    actions = module.parser(command)._actions
    if word.startswith("-"):
        return _starting(word, _option_strings(actions))
    last_options = [action for action in actions if rest and rest[-1] in action.option_strings]
    if last_options and last_options[0].nargs != 0:  # the value of an option is typed
        return _starting(word, list(last_options[0].choices or []))
    positionals = [action for action in actions if not action.option_strings]
    if not positionals:
        return []
    if positionals[0].choices:
        return _starting(word, list(positionals[0].choices))
    return _starting(word, _experiment_names(benchmarks=command == "bench"))


def _option_strings(actions: list[argparse.Action]) -> list[str]:
    return [option for action in actions for option in action.option_strings]


def _experiment_names(*, benchmarks: bool) -> list[str]:
    """Return the names of sq's benchmarks, or of its experiments."""
    from sq.records import experiments

    listed = experiments.listed()
    if benchmarks:
        stems = [experiment.stem for experiment in listed if experiment.is_bench]
        return [stem.removeprefix(experiments.BENCH) for stem in stems]
    return sorted({experiment.name for experiment in listed})


def _of_hydra(rest: list[str], word: str) -> list[str]:
    """Return candidates of Hydra's command line: settings, choices, and experiments for ``-cn``."""
    if rest and rest[-1] in NAME_OPTIONS:
        return _starting(word, _experiment_files(rest))
    if rest and rest[-1] in FOLDER_OPTIONS:
        return []  # the shell itself completes paths
    from sq.runs.arguments import parser

    if word.startswith("-"):
        return _starting(word, _option_strings(parser()._actions))
    options = parser().parse_args(_without_settings(rest))
    flags: list[str] = []
    if options.config_name:
        flags += ["--config-name", options.config_name]
    if options.config_dir:
        flags += ["--config-dir", options.config_dir]
    # Of a list, as sweeps have them, the last item is typed: quantizer=rtn,g...
    start, comma, item = word.rpartition(",")
    query = f"{start.partition('=')[0]}={item}" if comma and "=" in start else word
    settings = [setting for setting in rest if "=" in setting and "," not in setting]
    completed = _query_hydra(flags, " ".join(["sq", *settings, query]))
    if query == word:
        return completed
    return [f"{start},{setting.partition('=')[2]}" for setting in completed]


def _experiment_files(rest: list[str]) -> list[str]:
    """Return the values for ``-cn``: files in the folder of ``-cd``, else the experiments of sq."""
    from sq.core import paths

    folder = paths.EXPERIMENTS
    for option, value in itertools.pairwise(rest):
        if option in ("-cd", "--config-dir"):
            folder = Path(value)
    return [file.stem for file in folder.glob("*.yaml")]


def _without_settings(words: list[str]) -> list[str]:
    """Return the options among `words`, with their values."""
    options = []
    previous = ""
    for word in words:
        if word.startswith("-") or previous in (*NAME_OPTIONS, *FOLDER_OPTIONS):
            options.append(word)
        previous = word
    return options


def _query_hydra(flags: list[str], line: str) -> list[str]:
    """Return the completions that Hydra prints for a command `line`."""
    from sq import cli

    output = io.StringIO()
    with (
        patch.object(sys, "argv", ["sq", *flags, "--shell-completion", "query=fish"]),
        patch.dict(os.environ, {"COMP_LINE": line}),
        redirect_stdout(output),
        redirect_stderr(io.StringIO()),
    ):
        try:
            cli.main()
        except SystemExit:  # Hydra refuses the line: there is nothing to propose
            return []
    completions = []
    is_value = "=" in line.split()[-1]
    for word in output.getvalue().splitlines():
        if not word or "._" in word:
            continue
        # Hydra prints a group of choices without "=" if it has a folder of others.
        is_group = word.isidentifier() and not is_value
        completions.append(f"{word}=" if is_group else word)
    return completions


def _after_break(words: list[str], line: str) -> list[str]:
    """Return the part of each candidate after the last character at which bash splits words."""
    _, word = _split(line)
    breaks = [char for char in "=:," if char in os.environ.get("COMP_WORDBREAKS", "")]
    cut = max((word.rfind(char) + 1 for char in breaks), default=0)
    return [candidate[cut:] for candidate in words]
