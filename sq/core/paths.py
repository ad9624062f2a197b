"""Folders of the project: the package, its configs and its experiments.

In a checkout the configs lie beside the package, in an installed wheel within it (see setup.py).
"""

from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]
CHECKOUT = None if (PACKAGE / "conf").is_dir() else PACKAGE.parent  # None: installed from a wheel
CONF = (CHECKOUT or PACKAGE) / "conf"
EXPERIMENTS = (CHECKOUT or PACKAGE) / "experiments"
