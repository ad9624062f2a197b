"""Files of users that hold something else than their name says: what it is, and text in the encodings people use."""

from __future__ import annotations

import codecs
from pathlib import Path

from sq.errors import SqError

HEAD = 512  # bytes that are looked at
BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def mistaken_content(path: Path) -> str | None:
    """Return what the file at `path` is, as a clause, if it is a well-known mistake; None if it is none of them.

    Known are folders, links to nothing, empty files, files of zeros, pointers of Git LFS and pages
    of HTML.
    """
    if path.is_dir():
        return "it is a folder"
    if path.is_symlink() and not path.exists():
        return f"it is a link to {path.readlink()}, which is not there"
    try:
        with path.open("rb") as stream:
            head = stream.read(HEAD)
    except FileNotFoundError:
        return "it is not there"
    except OSError as error:
        return f"it cannot be opened ({error.strerror})"
    if not head:
        return "it is empty (0 bytes)"
    if not any(head):
        return "it begins with zeros, as a download or a copy that broke off"
    if head.startswith(b"version https://git-lfs"):
        return "it is a Git LFS pointer, not the file itself, which `git lfs pull` fetches"
    if head.lstrip(codecs.BOM_UTF8 + b" \t\r\n").lower().startswith((b"<!doctype html", b"<html")):
        return "it is a page of HTML, as a failed download leaves"
    return None


def read_text(path: Path) -> str:
    """Return the text in `path`: UTF-8, or UTF-16 with a byte order mark, which is left out.

    Raises
    ------
    SqError : the file cannot be opened, or is in another encoding
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise SqError(f"{path} cannot be read: {error.strerror}") from error
    encoding = next((name for mark, name in BYTE_ORDER_MARKS if content.startswith(mark)), "utf-8")
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise SqError(
            f"{path}:{line}: byte 0x{content[error.start]:02x} is not {encoding.upper()}: "
            f"save the file as UTF-8 (from Latin-1: iconv -f latin1 -t utf-8)"
        ) from error
