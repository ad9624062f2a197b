"""``python -m sq``: the command ``sq`` where it is not on the PATH."""

import sys

from sq.commands import main

if __name__ == "__main__":
    sys.exit(main(called="python -m sq"))
