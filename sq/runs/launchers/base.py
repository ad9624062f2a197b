"""Launchers of ours: they take the jobs of a sweep as they are, run them elsewhere, and notice processes that die.

Hydra's own launchers compose every job again from its overrides, wait for the first crash at most,
and know nothing of records.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any, get_type_hints

from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from omegaconf import OmegaConf

from sq.config.instantiate import check_settings
from sq.errors import SqError
from sq.runs.sweep.expand import Job

TAIL = 4000  # characters of a dead process's log that its run's record keeps


@dataclass(frozen=True)
class Ended:
    """The end of job `number`: what its process died of, "" if it did not, with the end of that process's log.

    `begun` is False where the process died before it came to this job.
    """

    number: int
    cause: str = ""
    trace: str = ""
    begun: bool = True


class Follower(Launcher):
    """A launcher that `sq.runs.sweep.sweeper` follows job by job."""

    here = False  # whether its runs are on this machine

    def __init__(self, **settings: Any):
        self.settings: Any = OmegaConf.to_container(OmegaConf.create(settings), resolve=True)

    @abstractmethod
    def kinds(self) -> type:
        """Return its settings and their types, as a `TypedDict`."""

    def check(self) -> None:
        """Raise an `SqError` unless every setting is there and makes sense."""
        check_settings(
            self.settings, get_type_hints(self.kinds(), include_extras=True), "hydra.launcher"
        )

    @abstractmethod
    def run(self, jobs: list[Job]) -> Generator[Ended, None, None]:
        """Run `jobs`, and yield one `Ended` for each as it ends, in whatever order."""

    def setup(self, **_: Any) -> None:
        """Take what Hydra hands a launcher; none of it is needed."""

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        """Refuse a sweeper that is not ours."""
        raise SqError(
            "this launcher works with sq's own sweeper; remove hydra/sweeper= from the command"
        )
