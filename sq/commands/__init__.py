"""The command ``sq``: one program for everything, ``sq COMMAND ...``, also as ``python -m sq COMMAND ...``.

Each command is a module with its own words, which is loaded when it is asked for: an overview is
there at once.
"""

from __future__ import annotations

import importlib
import sys
from dataclasses import dataclass

from sq.core import closed_pipe

OPTIONS = ("-h", "--help", "--version")
USAGE = 2  # exit code where the command line makes no sense, as of argparse


@dataclass(frozen=True)
class Command:
    """A command of sq: where its function is, ``main(words, prog) -> exit code``, what it does, and an example."""

    target: str  # MODULE:FUNCTION
    summary: str
    example: str


COMMANDS = {
    "run": Command(
        "sq.commands.experiments:run", "quantize and measure, once", "sq run quantizer=obq bits=3"
    ),
    "sweep": Command(
        "sq.commands.experiments:sweep",
        "the same over many settings",
        "sq sweep quantizer=obq,gptq bits=3,4",
    ),
    "report": Command(
        "sq.report.__main__:main", "tables, figures and pages from records", "sq report quickstart"
    ),
    "status": Command(
        "sq.runs.status:main", "what is done, running, failed, missing", "sq status quickstart"
    ),
    "bench": Command(
        "sq.bench.__main__:main", "solvers side by side on the same layers", "sq bench synthetic"
    ),
    "track": Command(
        "sq.tracker.upload:main", "upload records to Weights & Biases", "sq track quickstart"
    ),
    "reproduce": Command(
        "sq.reproduce.__main__:program",
        "every experiment that is not done",
        "sq reproduce --dry-run",
    ),
    "doctor": Command(
        "sq.commands.doctor:main", "what is installed here, and what is missing", "sq doctor"
    ),
    "completion": Command(
        "sq.commands.completion:main", "what a shell needs to complete words", "sq completion bash"
    ),
}


@closed_pipe.quiet
def main(words: list[str] | None = None, called: str = "sq") -> int:
    """Do what the command line says; return the exit code. `called` is how the program was."""
    words = sys.argv[1:] if words is None else words
    if words[:1] == ["help"]:  # "sq help run" as "sq run --help"
        words = [*words[1:2], "--help"]
    if not words or words[0] in ("-h", "--help"):
        # not through sq.core.progress: at once, whatever is not installed
        sys.stdout.write(f"{overview(called)}\n")
        return 0
    if words[0] == "--version":
        from sq import __version__

        sys.stdout.write(f"sq {__version__}\n")
        return 0
    name, *rest = words
    if name not in COMMANDS:
        sys.stderr.write(f"sq: {refusal(words, called)}\n")
        return USAGE
    module, _, function = COMMANDS[name].target.partition(":")
    try:
        program = getattr(importlib.import_module(module), function)
    except ModuleNotFoundError as error:
        if (error.name or "sq").partition(".")[0] == "sq":
            raise  # a fault of ours
        sys.stderr.write(
            f"sq: {error.name} is not installed: install sq with pip, which brings what it needs\n"
        )
        return 1
    return program(rest, f"{called} {name}")


def overview(called: str) -> str:
    """Return the commands on one screen; `called` is how the program was."""
    wide = max(map(len, COMMANDS))
    longest = max(len(command.summary) for command in COMMANDS.values())
    lines = [
        f"  {name:<{wide}}  {command.summary:<{longest}}  {command.example.replace('sq', called, 1)}"
        for name, command in COMMANDS.items()
    ]
    return "\n".join(
        [
            "sq: post-training quantization of vision networks, as experiments you can repeat",
            "",
            f"usage: {called} COMMAND ...   {called} --version",
            "",
            *lines,
            "",
            f"{called} COMMAND --help tells all its words; {called} run --help every choice and setting.",
            f"An experiment that comes with sq: {called} run -cn quickstart; of your own: -cd FOLDER -cn NAME.",
            "Records go to results/, logs to outputs/, both in the working directory.",
        ]
    )


def refusal(words: list[str], called: str) -> str:
    """Return why `words` begin with no command, and what was probably meant."""
    name = words[0]
    if "=" in name or name.startswith("-"):
        what = "a setting" if "=" in name else "an option"
        own = "sweep" if {"-m", "--multirun"} & {*words} else "run"
        rest = [word for word in words if own == "run" or word not in ("-m", "--multirun")]
        return f"{name}: {what}, and no command: {' '.join([called, own, *rest])}"
    from sq.config.schema import nearest

    return f"{name}: no such command; {nearest(name, COMMANDS)} (all: {', '.join(COMMANDS)})"
