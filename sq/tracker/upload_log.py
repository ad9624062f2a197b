"""What was sent of an experiment, where to, and as it was then: outputs/tracked/NAME.json.

A note saves work, nothing more: without one a page is sent again, to the id it has already. So
nothing is locked here, and of two processes that write at once the one may lose the other's last
notes.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from sq.core import files
from sq.errors import SqError

VERSION = 1
PAUSE = 5.0  # seconds between two writes while much is noted


class Ledger:
    """The notes of one experiment for one place.

    Parameters
    ----------
    file : read now, written by `write`; other places' notes in it are kept
    place : where pages go, in words: mode, server or folder, entity, project

    Raises
    ------
    SqError : the file is damaged
    """

    def __init__(self, file: Path, place: str):
        self.file, self.place = file, place
        self.places = _read(file)
        own = self.places.setdefault(place, {"sent": {}, "seconds": None})
        self.sent: dict[str, str] = own["sent"]
        self.written = time.monotonic()

    @property
    def seconds(self) -> float | None:
        """Return what a page took the last time, None if there was none."""
        return self.places[self.place]["seconds"]

    @seconds.setter
    def seconds(self, value: float) -> None:
        self.places[self.place]["seconds"] = value

    def has(self, page: str, digest: str) -> bool:
        """Tell whether the page of that id was sent when its source had that digest."""
        return self.sent.get(page) == digest

    def note(self, page: str, digest: str) -> None:
        """Note that the page was sent."""
        self.sent[page] = digest
        if time.monotonic() - self.written > PAUSE:
            self.write()

    def write(self) -> None:
        """Write the file, whole or not at all."""
        text = json.dumps({"ledger": VERSION, "places": self.places}, indent=1, sort_keys=True)
        files.write_text(self.file, text + "\n", "outputs")
        self.written = time.monotonic()


def _read(file: Path) -> dict[str, dict[str, Any]]:
    cure = "delete it, and everything is uploaded again, in place of what is there"
    try:
        found = json.loads(file.read_text())
        if found["ledger"] != VERSION:
            raise ValueError(f"version {found['ledger']}")
        for own in found["places"].values():
            if not isinstance(own["sent"], dict) or not isinstance(
                own["seconds"], int | float | None
            ):
                raise TypeError("notes of another shape")
        return found["places"]
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise SqError(
            f"cannot read {file}: {error.strerror}; correct --outputs or its rights"
        ) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise SqError(
            f"{file} is not a whole list of what was uploaded ({error}): {cure}"
        ) from error
