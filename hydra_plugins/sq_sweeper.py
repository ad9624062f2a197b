"""Hydra plugin: the sweeper of sq, which calls sq/runs/sweep/sweeper.py."""

from __future__ import annotations

from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper


class Sweeper(BasicSweeper):
    """Expands a sweep, runs what is not done, and sums up; see `sq.runs.sweep.sweeper.run`."""

    def sweep(self, arguments: list[str]) -> Any:
        """Run the sweep that `setup` was given; `arguments` are part of its config."""
        from sq.runs.sweep import sweeper

        assert self.config is not None
        assert self.hydra_context is not None
        assert self.launcher is not None
        return sweeper.run(self.hydra_context.config_loader, self.config, self.launcher)
