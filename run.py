"""Quantize networks and measure them: ``python run.py --help``."""

from sq.cli import main

if __name__ == "__main__":
    main()
