"""``python -m sq.track NAME``: the same as ``sq track NAME``."""

import sys

from sq.tracker.upload import main

if __name__ == "__main__":
    sys.exit(main(prog="python -m sq.track"))
