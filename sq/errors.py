"""The one exception for what a user can put right; everything else is our own mistake."""

from __future__ import annotations

import re

COLOURS = re.compile(r"\x1b\[[0-9;]*m")  # of terminals, in messages of others


class SqError(ValueError):
    """A problem the user can fix: the message says what was got, what is allowed and what to do.

    Parameters
    ----------
    message : for the command line, which names settings
    call : the same for a call of `sq.quantize`, where what to do differs: its images are no setting
    """

    def __init__(self, message: str, call: str | None = None):
        super().__init__(message)
        self.call = call or message


class ImageError(SqError):
    """An image file that cannot be read; the message follows the file's name.

    `dataset.skip_corrupt` leaves such files out.
    """


def one_line(error: BaseException) -> str:
    """Return `error` as one line: the message alone for an `SqError`, else the type before it."""
    text = " ".join(COLOURS.sub("", str(error)).split()) or "no message"
    return text if isinstance(error, SqError) else f"{type(error).__name__}: {text}"
