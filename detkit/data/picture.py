"""Pictures as the network's preprocessing wants them: RGB, 8 bits, [H, W, 3]."""

from __future__ import annotations

import ctypes
import os
import struct
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError, _imaging
from PIL.Image import Transpose

from detkit.errors import DetkitError, nearest

FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "TIFF")
SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"})

MAX_PIXELS = 100_000_000
"""The largest picture read by default: 300 MB when decoded, while a header of a few bytes can claim any size."""

_QUARTER_TURNS = frozenset({Transpose.TRANSPOSE, Transpose.ROTATE_270, Transpose.TRANSVERSE, Transpose.ROTATE_90})
_TURNS = {
    2: Transpose.FLIP_LEFT_RIGHT,
    3: Transpose.ROTATE_180,
    4: Transpose.FLIP_TOP_BOTTOM,
    5: Transpose.TRANSPOSE,
    6: Transpose.ROTATE_270,
    7: Transpose.TRANSVERSE,
    8: Transpose.ROTATE_90,
}

_SAMPLES = ("astronaut", "chelsea")

_pillow_limit = threading.Lock()
if sys.platform != "win32":  # a process forked while a thread reads a header would wait for it forever
    os.register_at_fork(
        before=_pillow_limit.acquire, after_in_parent=_pillow_limit.release, after_in_child=_pillow_limit.release
    )


# Pillow and its libtiff complain of odd tags and cut files without saying which file. Tags do not change the pixels,
# and what does comes as an exception too. Set once: warnings.catch_warnings would not be safe while threads read.
warnings.filterwarnings("ignore", module=r"PIL\.\w+ImagePlugin")
with suppress(AttributeError, OSError):  # a Pillow that was linked in another way
    ctypes.CDLL(_imaging.__file__).TIFFSetErrorHandler(None)


def read_picture(
    source: Path | bytes | BinaryIO,
    *,
    apply_orientation: bool = True,
    max_pixels: int = MAX_PIXELS,
    name: str | None = None,
) -> NDArray[np.uint8]:
    """Read a JPEG, PNG, BMP, WebP or TIFF as an RGB array [H, W, 3], contiguous and writable.

    Transparent pixels are laid on white, as a page shows them. Of 16 bits the upper 8 are kept, so that each grey
    level stands for 256 of the file's. Of several frames or pages the first is taken. apply_orientation turns the
    picture as its EXIF tag asks (TIFF is always turned). Errors, each with the file's name: missing, empty, truncated
    or damaged, no picture, more than max_pixels (checked before anything is decoded), pixels without a known range.
    """
    with _open(source, max_pixels, name) as (picture, name):
        picture.load()
        turn = _turn(picture) if apply_orientation else None
        rgb = _to_rgb(picture, name)
        return np.array(rgb if turn is None else rgb.transpose(turn))


def picture_size(source: Path, *, apply_orientation: bool = True) -> tuple[int, int]:
    """Return (height, width) from a picture's header, however large, without decoding it."""
    with _open(source, None, None) as (picture, _):
        width, height = picture.size
        if not apply_orientation:
            return height, width
        if picture.format == "PNG" and "exif" not in picture.info and (tags := _late_tags(source)):
            picture.info["exif"] = tags
        return (width, height) if _turn(picture) in _QUARTER_TURNS else (height, width)


def sample_picture(name: str) -> NDArray[np.uint8]:
    """Return a picture that comes with scikit-image, `astronaut` or `chelsea`, without any download."""
    if name not in _SAMPLES:
        raise DetkitError(f"sample:{name}: no such picture{nearest(name, _SAMPLES)} (there are {', '.join(_SAMPLES)})")
    package = find_spec("skimage")  # the file itself: importing skimage.data may reach for the network
    if package is None or package.origin is None:
        raise DetkitError(f"sample:{name}: scikit-image, whose picture this is, is not installed")
    return read_picture(Path(package.origin).parent / "data" / f"{name}.png", name=f"sample:{name}")


@contextmanager
def _open(
    source: Path | bytes | BinaryIO, max_pixels: int | None, name: str | None
) -> Iterator[tuple[Image.Image, str]]:
    """Open a picture and turn whatever goes wrong while it is used into one sentence."""
    name = name or (str(source) if isinstance(source, Path) else str(getattr(source, "name", "the picture")))
    try:
        with _bytes(source) as file:
            if not file.read(1):
                raise DetkitError(f"{name}: the file is empty (0 bytes)")
            file.seek(0)
            with _unlimited():
                picture = Image.open(file, formats=FORMATS)
            width, height = picture.size
            if max_pixels is not None and width * height > max_pixels:
                raise DetkitError(
                    f"{name}: the picture is {width} wide and {height} high, more than the limit of {max_pixels} "
                    "pixels; scale it down or raise max_pixels (--max-pixels of detect and eval)"
                )
            yield picture, name
    except DetkitError:
        raise
    except UnidentifiedImageError:
        raise DetkitError(f"{name}: is not a picture that can be read (JPEG, PNG, BMP, WebP or TIFF)") from None
    except FileNotFoundError:
        raise DetkitError(f"{name}: no such file") from None
    except Exception as error:  # Pillow's readers raise all kinds of errors on damaged files
        if isinstance(error, OSError) and error.strerror:
            raise DetkitError(f"{name}: cannot be read: {error.strerror}") from None
        raise DetkitError(f"{name}: the picture is truncated or damaged ({error})") from None


@contextmanager
def _bytes(source: Path | bytes | BinaryIO) -> Iterator[BinaryIO]:
    if isinstance(source, Path):
        with source.open("rb") as file:
            yield file
    else:
        yield BytesIO(source if isinstance(source, bytes) else source.read())


@contextmanager
def _unlimited() -> Iterator[None]:
    """Lift Pillow's own limit, a global, while a header is read: ours follows at once and is the caller's to set."""
    with _pillow_limit:
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def _turn(picture: Image.Image) -> Transpose | None:
    # Pillow turns TIFF itself. ImageOps.exif_transpose also writes the tags anew, which fails where they are malformed.
    # PNG's own getexif decodes the pixels first, since tags may follow them.
    return None if picture.format == "TIFF" else _TURNS.get(Image.Image.getexif(picture).get(0x0112, 1))


def _late_tags(png: Path) -> bytes | None:
    """Return the EXIF tags of a PNG, which some programs write behind the pixels."""
    with png.open("rb") as file:
        file.seek(8)
        while len(head := file.read(8)) == 8:
            length, kind = struct.unpack(">I4s", head)
            if kind == b"eXIf":
                return b"Exif\0\0" + bytes(file.read(length))
            file.seek(length + 4, os.SEEK_CUR)
    return None


def _to_rgb(picture: Image.Image, name: str) -> Image.Image:
    if picture.mode.startswith("I;16") or (picture.mode == "I" and picture.format == "PNG"):
        picture = Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
    if picture.mode in ("I", "F"):
        raise DetkitError(
            f"{name}: its pixels are 32-bit numbers without a known range; save it with 8 or 16 bits per channel"
        )
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")
    return picture.convert("RGB")
