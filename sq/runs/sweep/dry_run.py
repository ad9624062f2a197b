"""What a command would do, before it does anything: refused where that makes no sense, shown on a dry run."""

from __future__ import annotations

from sq.core.progress import out, say
from sq.errors import SqError
from sq.runs.sweep import plan, preflight
from sq.runs.sweep.expand import Job
from sq.runs.sweep.plan import Known, Run
from sq.runs.sweep.preflight import Faults


def look(jobs: list[Job], retry: str, *, here: bool) -> tuple[Known, list[Run], list[Run]]:
    """Return the records that are there, how `jobs` stand, and which of them are to be run.

    Parameters
    ----------
    retry : what is run again, see `plan.chosen`
    here : they are to run on this machine, which must have what they need then

    Raises
    ------
    SqError : settings make no sense, or something is not here
    """
    _refuse(preflight.senseless(jobs), jobs, "make no sense")
    known = Known(jobs)
    runs = [known.state(one) for one in jobs]
    todo = plan.chosen(runs, retry)
    asked = [run.job for run in todo]
    _refuse(preflight.unfit(asked), jobs, "make no sense")
    lacking = preflight.lacking(asked)
    if here:
        _refuse(lacking, jobs, "lack what they need")
    elif lacking:
        say(f"seen from here {preflight.told(lacking, jobs, 'lack what they need')}")
    return known, runs, todo


def show(known: Known, runs: list[Run], todo: list[Run]) -> None:
    """Say how `runs` stand, which are `todo`, and what those should take."""
    out.print(plan.listing(runs, todo))
    say(plan.forecast(runs, todo, known))


def _refuse(found: Faults, jobs: list[Job], what: str) -> None:
    if found:
        raise SqError(f"nothing was run; {preflight.told(found, jobs, what)}")
