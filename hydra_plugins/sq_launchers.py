"""Where Hydra looks for plugins: the launchers of sq, whose work is done in sq/pool.py and sq/cluster.py."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from sq.launch import Ended, Follower
from sq.points import Job


class Local(Follower):
    """Runs on this machine, several at a time; see `sq.pool.run`."""

    here = True

    def __init__(self, processes: int | None, folder: str):
        self.processes, self.folder = processes, Path(folder)

    def run(self, jobs: list[Job]) -> Generator[Ended, None, None]:
        """Run `jobs` in processes of this machine."""
        from sq import pool

        return pool.run(jobs, self.processes, self.folder)


class Slurm(Follower):
    """Runs as tasks of a SLURM job array; see `sq.cluster.run`."""

    def __init__(self, **settings: Any):
        self.settings = OmegaConf.to_container(OmegaConf.create(settings), resolve=True)

    def run(self, jobs: list[Job]) -> Generator[Ended, None, None]:
        """Submit `jobs`."""
        from sq import cluster

        assert isinstance(self.settings, dict)
        return cluster.run(jobs, self.settings)
