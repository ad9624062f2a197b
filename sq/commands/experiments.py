"""``sq run`` and ``sq sweep``: the command line of Hydra, as ``python run.py`` and ``python run.py -m``."""

from __future__ import annotations

import sys


def run(words: list[str], prog: str) -> int:
    """Run what `words` say; return the exit code."""
    from sq import cli

    before = sys.argv
    sys.argv = [prog, *words]  # where Hydra reads its command line
    try:
        cli.main()
    finally:
        sys.argv = before
    return 0


def sweep(words: list[str], prog: str) -> int:
    """Run a sweep over what `words` say; return the exit code."""
    return run(["-m", *words], prog)
