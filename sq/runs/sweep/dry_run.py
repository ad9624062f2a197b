"""Check a command before it does anything: refuse it, or show what it would do on a dry run."""

from __future__ import annotations

from sq.core.progress import out, say
from sq.errors import SqError
from sq.runs.sweep import plan, preflight
from sq.runs.sweep.expand import Job
from sq.runs.sweep.plan import ExistingRuns, Run
from sq.runs.sweep.preflight import Faults


def look(jobs: list[Job], retry: str, *, here: bool) -> tuple[ExistingRuns, list[Run], list[Run]]:
    """Return the existing records, the state of each job, and the jobs to run.

    Parameters
    ----------
    retry : which jobs run again, see `plan.chosen`
    here : the jobs run on this machine, which must have what they need

    Raises
    ------
    SqError : settings make no sense, or this machine lacks something
    """
    _refuse(preflight.senseless(jobs), jobs, "make no sense")
    existing = ExistingRuns(jobs)
    runs = [existing.state(job) for job in jobs]
    todo = plan.chosen(runs, retry)
    jobs_to_run = [run.job for run in todo]
    _refuse(preflight.unfit(jobs_to_run), jobs, "make no sense")
    lacking = preflight.lacking(jobs_to_run)
    if here:
        _refuse(lacking, jobs, "lack what they need")
    elif lacking:
        say(f"seen from here {preflight.describe(lacking, jobs, 'lack what they need')}")
    return existing, runs, todo


def show(existing: ExistingRuns, runs: list[Run], todo: list[Run]) -> None:
    """Print the state of `runs`, which are `todo`, and how long those should take."""
    out.print(plan.listing(runs, todo))
    say(plan.forecast(runs, todo, existing))


def _refuse(faults: Faults, jobs: list[Job], what: str) -> None:
    if faults:
        raise SqError(f"nothing was run; {preflight.describe(faults, jobs, what)}")
