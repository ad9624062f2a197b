"""Reading one image file: its header, its pixels, and plain messages if it cannot be read."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageOps, UnidentifiedImageError

from sq.core.file_content import mistaken_content
from sq.errors import ImageError

ORIENTATION_TAG = 0x0112  # of EXIF: how a viewer turns or mirrors the image
AS_STORED = 1  # the orientation that changes nothing
SIDES_SWAPPED = (5, 6, 7, 8)  # orientations that turn by 90 degrees
# brands of the container
HEIC_BRANDS = (b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1")


@dataclass(frozen=True)
class Header:
    """Facts of an image that are known before it is decoded."""

    size: tuple[int, int]  # (height, width) as stored
    orientation: int  # of EXIF, 1 to 8

    @property
    def upright(self) -> tuple[int, int]:
        """Return (height, width) after the turn that its EXIF orientation asks for."""
        height, width = self.size
        if self.orientation in SIDES_SWAPPED:
            return width, height
        return height, width


def read_header(path: Path) -> Header:
    """Return the header of the image at `path`.

    Raises
    ------
    ImageError : it cannot be read
    """
    with _explained(path), Image.open(path) as image:
        return header_of(image)


def header_of(image: Image.Image) -> Header:
    """Return the header of an `image` that is open or decoded."""
    return Header((image.height, image.width), _orientation(image))


def read_image(path: Path) -> Image.Image:
    """Return the image at `path` as it is stored, decoded.

    Raises
    ------
    ImageError : it cannot be read
    """
    with _explained(path), Image.open(path) as image:
        # Decode now, so that a damaged file is noticed here. The pixels outlive the file handle.
        image.load()
        return image


def colour(image: Image.Image) -> Image.Image:
    """Return `image` in 8-bit RGB; transparency is dropped, as in the training of most networks.

    Raises
    ------
    ImageError : it has more than 8 bits per channel; Pillow would clip all values beyond 255
    """
    if image.mode.startswith(("I", "F")):
        raise ImageError(
            f"it is {image.width}x{image.height} {image.mode}, more than 8 bits a channel: convert "
            "it to 8 bits"
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of transparency in palettes
        return image.convert("RGB")


def upright(image: Image.Image) -> Image.Image:
    """Return `image` turned by its EXIF orientation."""
    return ImageOps.exif_transpose(image)


def _orientation(image: Image.Image) -> int:
    try:
        value = image.getexif().get(ORIENTATION_TAG, AS_STORED)
    except Exception:  # damaged EXIF can raise anything; viewers ignore it too
        return AS_STORED
    return value if value in range(1, 9) else AS_STORED


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Raise an `ImageError` in place of Pillow's exceptions while it reads `path`."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of large images, which are read, and damaged EXIF
            yield
    except UnidentifiedImageError as error:
        raise ImageError(mistaken_content(path) or _format(path)) from error
    except Image.DecompressionBombError as error:
        limit = 2 * (Image.MAX_IMAGE_PIXELS or 0)
        raise ImageError(
            f"it has more than {limit:,} pixels, which Pillow does not decode: scale it down"
        ) from error
    except Exception as error:  # damaged bytes can raise anything
        raise ImageError(
            mistaken_content(path) or f"it is damaged ({' '.join(str(error).split())})"
        ) from error


def _format(path: Path) -> str:
    """Return why Pillow cannot read a file, by its first bytes."""
    with path.open("rb") as stream:
        head = stream.read(64)
    if head[4:8] == b"ftyp" and head[8:12] in HEIC_BRANDS:
        return "it is HEIC, which Pillow does not read: convert it to JPEG or PNG"
    if head[4:8] == b"ftyp" and head[8:12] in (b"avif", b"avis"):
        return "it is AVIF, which this Pillow does not read: convert it to JPEG or PNG"
    if all(byte >= 32 or byte in b"\t\r\n" for byte in head) and head.isascii():
        return "it is text, not an image"
    return "it is no image of a format that Pillow knows"
