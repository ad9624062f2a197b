"""What the files in experiments/ say of an experiment: its question, command, cost and the answer expected."""

from __future__ import annotations

from collections.abc import Iterable

from sq.records.experiments import Experiment


def headers(name: str, found: Iterable[Experiment]) -> list[dict[str, str]]:
    """Return the headers of those `found` that keep their records under `name`, that of `name`.yaml first.

    Returns
    -------
    each with `file`, and in small letters the words that a header's parts begin with: `question`,
    `run`, `cost`, `expect`, `source`
    """
    own = sorted(
        (one for one in found if one.name == name), key=lambda one: (one.stem != name, one.stem)
    )
    return [
        {"file": one.file.name, **{word.lower(): text for word, text in one.header.items()}}
        for one in own
    ]
