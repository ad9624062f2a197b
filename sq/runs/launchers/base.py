"""The base class of sq's launchers, which run the jobs of a sweep and notice processes that die.

Hydra's own launchers compose every job again from its overrides, stop at the first crash, and know
nothing of records.
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

TAIL = 4000  # characters at the end of a dead process's log that go to the record of its run


@dataclass(frozen=True)
class Ended:
    """The end of a job.

    Parameters
    ----------
    number : of the job
    cause : what its process died of, "" if it did not
    trace : the end of the log of a process that died
    begun : False if the process died before it began this job
    """

    number: int
    cause: str = ""
    trace: str = ""
    begun: bool = True


class Follower(Launcher):
    """A launcher that `sq.runs.sweep.sweeper` follows job by job."""

    here = False  # whether it runs jobs on this machine

    def __init__(self, **settings: Any):
        self.settings: Any = OmegaConf.to_container(OmegaConf.create(settings), resolve=True)

    @abstractmethod
    def kinds(self) -> type:
        """Return its settings and their types, as a `TypedDict`."""

    def check(self) -> None:
        """Raise an `SqError` unless every setting is there and of the right type."""
        types = get_type_hints(self.kinds(), include_extras=True)
        check_settings(self.settings, types, "hydra.launcher")

    @abstractmethod
    def run(self, jobs: list[Job]) -> Generator[Ended, None, None]:
        """Run `jobs`, and yield one `Ended` for each as it ends, in any order."""

    def setup(self, **_: Any) -> None:
        """Ignore what Hydra gives to a launcher."""

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        """Refuse a sweeper that is not ours."""
        raise SqError(
            "this launcher works with sq's own sweeper; remove hydra/sweeper= from the command"
        )
