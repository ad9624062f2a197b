"""``python -m sq.status NAME``: the same as ``sq status NAME``."""

import sys

from sq.runs.status import main

if __name__ == "__main__":
    sys.exit(main(prog="python -m sq.status"))
