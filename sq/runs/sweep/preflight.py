"""What is wrong with the runs of a sweep, as far as it can be seen before any of them is done; each fault told once."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from sq.config import requirements
from sq.config.instantiate import check
from sq.config.schema import FAMILIES, problems
from sq.core.plugins import NotAllowed
from sq.core.wording import quantity
from sq.errors import SqError
from sq.runs import incompatible_settings
from sq.runs.sweep.expand import Job
from sq.runs.sweep.plan import differing

Faults = dict[str, list[Job]]  # what is wrong, and the jobs that it is wrong with

MOST = 5  # faults that are told
SHOWN = 3  # jobs that are named with each


def senseless(jobs: list[Job]) -> Faults:
    """Return what is wrong with settings, without loading anything."""
    found: Faults = {}
    for job in jobs:
        for fault in problems(job.config):
            found.setdefault(fault, []).append(job)
    return found


def unfit(jobs: list[Job]) -> Faults:
    """Return the choices that do not fit the code they name, or each other."""
    found: Faults = {}
    for family in FAMILIES:
        found |= _by_part(jobs, (family,), partial(_misfit, family))
    for job in jobs:
        for fault in incompatible_settings.find(job.config, job.choices):
            found.setdefault(fault, []).append(job)
    return found


def lacking(jobs: list[Job]) -> Faults:
    """Return what jobs need and is not on this machine: data, weights, packages; see `sq.config.requirements`."""
    return _by_part(jobs, requirements.FAMILIES, lambda part: requirements.lacking([part]))


def told(faults: Faults, jobs: list[Job], what: str) -> str:
    """Return in one line how many of `jobs` have `faults`, as `what` says, then these.

    What most have is told first, with the first of them; a fault of all names none.
    """
    words = dict(zip(map(id, jobs), differing(jobs), strict=True))
    parts = []
    for fault, own in sorted(faults.items(), key=lambda item: -len(item[1]))[:MOST]:
        some = "; ".join(words[id(job)] for job in own[:SHOWN]) + (
            "; ..." if len(own) > SHOWN else ""
        )
        count = f"{quantity(own, 'run')}: " if len(own) > 1 else ""
        parts.append(fault if len(own) == len(jobs) else f"{fault} ({count}{some})")
    if len(faults) > MOST:
        parts.append(f"and {len(faults) - MOST} more")
    wrong = {id(job) for own in faults.values() for job in own}
    return f"{len(wrong)} of {len(jobs)} runs {what}: {' | '.join(parts)}"


def _by_part(
    jobs: list[Job], families: tuple[str, ...], find: Callable[[Mapping[str, Any]], list[str]]
) -> Faults:
    """Return what `find` says of these families of each job; equal ones are asked about once."""
    known: dict[str, list[str]] = {}  # the first check of a family imports torch
    found: Faults = {}
    for job in jobs:
        part = {family: job.config[family] for family in families}
        own = json.dumps(part, sort_keys=True)
        if own not in known:
            known[own] = find(part)
        for fault in known[own]:
            found.setdefault(fault, []).append(job)
    return found


def _misfit(family: str, config: Mapping[str, Any]) -> list[str]:
    try:
        check(config[family], family)
    except NotAllowed:
        return []  # told of all parts together, among the contradictions
    except SqError as error:
        return [str(error)]
    return []
