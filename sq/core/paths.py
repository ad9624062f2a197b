"""Where the project lies: what it reads of itself that is no code stands there.

In a checkout the folders stand beside the package, in an installed wheel within it (see setup.py).
"""

from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]
CHECKOUT = None if (PACKAGE / "conf").is_dir() else PACKAGE.parent  # None: installed from a wheel
CONF = (CHECKOUT or PACKAGE) / "conf"
EXPERIMENTS = (CHECKOUT or PACKAGE) / "experiments"
