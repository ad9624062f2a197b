"""The program ``sq``: ``sq COMMAND ...``, or ``python -m sq COMMAND ...``.

Each command is a module with its own arguments. It is loaded only when it is called, so that the
overview appears at once.
"""

from __future__ import annotations

import importlib
import sys
from dataclasses import dataclass

from sq.core import closed_pipe

OPTIONS = ("-h", "--help", "--version")
USAGE = 2  # exit code of a wrong command line, as in argparse


@dataclass(frozen=True)
class Command:
    """A command of sq: its function ``main(arguments, prog) -> exit code``, summary and example."""

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
def main(arguments: list[str] | None = None, called: str = "sq") -> int:
    """Run the command that the command line names; return the exit code.

    Parameters
    ----------
    arguments : of the program; None takes those of the process
    called : the name of the program, such as "python -m sq"
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments[:1] == ["help"]:  # "sq help run" as "sq run --help"
        arguments = [*arguments[1:2], "--help"]
    if not arguments or arguments[0] in ("-h", "--help"):
        # Not through sq.core.progress, which takes longer, and needs packages.
        sys.stdout.write(f"{overview(called)}\n")
        return 0
    if arguments[0] == "--version":
        from sq import __version__

        sys.stdout.write(f"sq {__version__}\n")
        return 0
    name, *rest = arguments
    if name not in COMMANDS:
        sys.stderr.write(f"sq: {refusal(arguments, called)}\n")
        return USAGE
    module, _, function = COMMANDS[name].target.partition(":")
    try:
        program = getattr(importlib.import_module(module), function)
    except ModuleNotFoundError as error:
        if (error.name or "sq").partition(".")[0] == "sq":
            raise  # a bug of sq
        sys.stderr.write(
            f"sq: {error.name} is not installed: install sq with pip, which brings what it needs\n"
        )
        return 1
    return program(rest, f"{called} {name}")


def overview(called: str) -> str:
    """Return the commands on one screen; `called` is the name of the program."""
    name_width = max(map(len, COMMANDS))
    summary_width = max(len(command.summary) for command in COMMANDS.values())
    lines = [
        "sq: post-training quantization of vision networks, as experiments you can repeat",
        "",
        f"usage: {called} COMMAND ...   {called} --version",
        "",
    ]
    for name, command in COMMANDS.items():
        example = command.example.replace("sq", called, 1)
        lines.append(f"  {name:<{name_width}}  {command.summary:<{summary_width}}  {example}")
    lines += [
        "",
        f"{called} COMMAND --help lists its options; {called} run --help every choice and setting.",
        f"An experiment that comes with sq: {called} run -cn quickstart; "
        "of your own: -cd FOLDER -cn NAME.",
        "Records go to results/, logs to outputs/, both in the working directory.",
    ]
    return "\n".join(lines)


def refusal(arguments: list[str], called: str) -> str:
    """Return why `arguments` do not begin with a command, and what was probably meant."""
    name = arguments[0]
    if "=" in name or name.startswith("-"):
        what = "a setting" if "=" in name else "an option"
        command, rest = "run", arguments
        if {"-m", "--multirun"} & {*arguments}:
            command = "sweep"
            rest = [argument for argument in arguments if argument not in ("-m", "--multirun")]
        return f"{name}: {what}, and no command: {' '.join([called, command, *rest])}"
    from sq.config.schema import nearest

    return f"{name}: no such command; {nearest(name, COMMANDS)} (all: {', '.join(COMMANDS)})"
