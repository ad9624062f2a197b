"""``sq run`` and ``sq sweep``: Hydra's command line, as ``python run.py`` and its ``-m``."""

from __future__ import annotations

import sys


def run(arguments: list[str], prog: str) -> int:
    """Run with `arguments` of Hydra; return the exit code."""
    from sq import cli

    before = sys.argv
    sys.argv = [prog, *arguments]  # where Hydra reads its command line
    try:
        cli.main()
    finally:
        sys.argv = before
    return 0


def sweep(arguments: list[str], prog: str) -> int:
    """Run a sweep with `arguments` of Hydra; return the exit code."""
    return run(["-m", *arguments], prog)
