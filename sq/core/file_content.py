"""Read files of users: recognise well-known wrong contents, and text in common encodings."""

from __future__ import annotations

import codecs
from pathlib import Path

from sq.errors import SqError

HEAD = 512  # bytes at the start of a file that are examined
BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def mistaken_content(path: Path) -> str | None:
    """Return a clause that says what the file is if it is a well-known mistake, else None.

    Known mistakes are folders, broken links, empty files, files of zeros, Git LFS pointers and
    HTML pages.
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
    """Return the text in `path`, UTF-8 or UTF-16, without its byte order mark.

    Raises
    ------
    SqError : the file cannot be opened, or is in another encoding
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise SqError(f"{path} cannot be read: {error.strerror}") from error
    encoding = "utf-8"
    for mark, marked_encoding in BYTE_ORDER_MARKS:
        if content.startswith(mark):
            encoding = marked_encoding
            break
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise SqError(
            f"{path}:{line}: byte 0x{content[error.start]:02x} is not {encoding.upper()}: "
            f"save the file as UTF-8 (from Latin-1: iconv -f latin1 -t utf-8)"
        ) from error
