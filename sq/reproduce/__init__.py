"""Run again all experiments whose records are missing, cheapest first; then rebuild the reports."""
