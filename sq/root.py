"""Where the project lies: what it reads of itself that is no code stands there."""

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent  # of run.py, conf/ and experiments/
CONF = ROOT / "conf"
EXPERIMENTS = ROOT / "experiments"
