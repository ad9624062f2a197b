"""Where Hydra looks for plugins: the launchers of sq, whose work is done in sq/runs/launchers/."""

from __future__ import annotations

from collections.abc import Generator

from sq.runs.launchers.base import Ended, Follower
from sq.runs.sweep.expand import Job


class Local(Follower):
    """Runs on this machine, several at a time; see `sq.runs.launchers.local.run`."""

    here = True

    def kinds(self) -> type:
        """Return the types of its settings."""
        from sq.runs.launchers import local

        return local.Settings

    def run(self, jobs: list[Job]) -> Generator[Ended, None, None]:
        """Run `jobs` in processes of this machine."""
        from sq.runs.launchers import local

        return local.run(jobs, self.settings)


class Slurm(Follower):
    """Runs as tasks of a SLURM job array; see `sq.runs.launchers.slurm.run`."""

    def kinds(self) -> type:
        """Return the types of its settings."""
        from sq.runs.launchers import slurm

        return slurm.Settings

    def run(self, jobs: list[Job]) -> Generator[Ended, None, None]:
        """Submit `jobs`."""
        from sq.runs.launchers import slurm

        return slurm.run(jobs, self.settings)
