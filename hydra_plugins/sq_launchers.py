"""Where Hydra looks for plugins: the launchers of sq, whose work is done in sq/pool.py and sq/cluster.py."""

from __future__ import annotations

from collections.abc import Generator

from sq.launch import Ended, Follower
from sq.points import Job


class Local(Follower):
    """Runs on this machine, several at a time; see `sq.pool.run`."""

    here = True

    def kinds(self) -> type:
        """Return the types of its settings."""
        from sq import pool

        return pool.Settings

    def run(self, jobs: list[Job]) -> Generator[Ended, None, None]:
        """Run `jobs` in processes of this machine."""
        from sq import pool

        return pool.run(jobs, self.settings)


class Slurm(Follower):
    """Runs as tasks of a SLURM job array; see `sq.cluster.run`."""

    def kinds(self) -> type:
        """Return the types of its settings."""
        from sq import cluster

        return cluster.Settings

    def run(self, jobs: list[Job]) -> Generator[Ended, None, None]:
        """Submit `jobs`."""
        from sq import cluster

        return cluster.run(jobs, self.settings)
