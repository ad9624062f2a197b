"""Faults of the runs of a sweep that can be seen before any of them starts, each reported once."""

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

Faults = dict[str, list[Job]]  # each fault with the jobs that have it

MAX_FAULTS = 5  # in a message
MAX_JOBS = 3  # named with each fault


def senseless(jobs: list[Job]) -> Faults:
    """Return the faults of settings, without loading anything."""
    faults: Faults = {}
    for job in jobs:
        for fault in problems(job.config):
            faults.setdefault(fault, []).append(job)
    return faults


def unfit(jobs: list[Job]) -> Faults:
    """Return the choices that do not fit the code they name, or each other."""
    faults: Faults = {}
    for family in FAMILIES:
        faults |= _by_part(jobs, (family,), partial(_misfit, family))
    for job in jobs:
        for fault in incompatible_settings.find(job.config, job.choices):
            faults.setdefault(fault, []).append(job)
    return faults


def lacking(jobs: list[Job]) -> Faults:
    """Return the data, weights and packages that jobs need and this machine lacks."""
    return _by_part(jobs, requirements.FAMILIES, lambda part: requirements.lacking([part]))


def describe(faults: Faults, jobs: list[Job], what: str) -> str:
    """Return one line: how many of `jobs` have `faults`, as `what` says, and the faults.

    The fault of most jobs comes first, each with the first jobs that have it. A fault of all jobs
    names none.
    """
    differences = dict(zip(map(id, jobs), differing(jobs), strict=True))
    most_common = sorted(faults.items(), key=lambda item: -len(item[1]))
    parts = []
    for fault, faulty in most_common[:MAX_FAULTS]:
        if len(faulty) == len(jobs):
            parts.append(fault)
            continue
        names = "; ".join(differences[id(job)] for job in faulty[:MAX_JOBS])
        if len(faulty) > MAX_JOBS:
            names += "; ..."
        count = f"{quantity(faulty, 'run')}: " if len(faulty) > 1 else ""
        parts.append(f"{fault} ({count}{names})")
    if len(faults) > MAX_FAULTS:
        parts.append(f"and {len(faults) - MAX_FAULTS} more")
    number = len({id(job) for faulty in faults.values() for job in faulty})
    return f"{number} of {len(jobs)} runs {what}: {' | '.join(parts)}"


def _by_part(
    jobs: list[Job], families: tuple[str, ...], find: Callable[[Mapping[str, Any]], list[str]]
) -> Faults:
    """Return the faults that `find` returns for these families of each job; equal ones run once."""
    checked: dict[str, list[str]] = {}  # the first check of a family imports torch
    faults: Faults = {}
    for job in jobs:
        part = {family: job.config[family] for family in families}
        key = json.dumps(part, sort_keys=True)
        if key not in checked:
            checked[key] = find(part)
        for fault in checked[key]:
            faults.setdefault(fault, []).append(job)
    return faults


def _misfit(family: str, config: Mapping[str, Any]) -> list[str]:
    try:
        check(config[family], family)
    except NotAllowed:
        return []  # reported for all parts together by `incompatible_settings`
    except SqError as error:
        return [str(error)]
    return []
