"""Writing files so that a reader finds them whole or not at all."""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from glob import escape
from itertools import takewhile
from pathlib import Path

from detkit.errors import DetkitError


@contextmanager
def aside(path: Path) -> Iterator[Path]:
    """Give a new hidden file beside `path` to write to; it becomes `path` when the block ends well, else it goes.

    A block that removes the file leaves `path` as it is. Folders on the way are made, as by `new_folder`. Raises
    DetkitError when the file cannot be made or renamed; what the block raises passes unchanged.
    """
    before, after = _around_token(path)
    part = path.with_name(f"{before}{secrets.token_hex(4)}{after}")
    with new_folder(path.parent):
        try:
            with explained(path):
                part.touch(exist_ok=False)
            yield part
            with explained(path):
                if part.exists():
                    part.replace(path)
        except BaseException:
            with suppress(OSError):  # the first error says more
                part.unlink(missing_ok=True)
            raise


def _around_token(path: Path) -> tuple[str, str]:
    return f".{path.stem[:20]}.", path.suffix[:16]  # fits whatever path.name is


def remove_parts(path: Path) -> None:
    """Remove the hidden files that `aside` left beside `path` when its process was killed."""
    before, after = map(escape, _around_token(path))
    with explained(path):
        for part in path.parent.glob(f"{before}{'[0-9a-f]' * 8}{after}"):
            part.unlink(missing_ok=True)


@contextmanager
def new_folder(folder: Path) -> Iterator[None]:
    """Make a folder and its parents, as far as they are missing; if the block fails, those left empty go again."""
    with explained(folder):
        missing = list(takewhile(lambda path: not path.exists(), (folder, *folder.parents)))
    try:
        with explained(folder):
            folder.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException:
        for path in missing:
            with suppress(OSError):  # not empty, or not made
                path.rmdir()
        raise


def write_atomically(path: Path, data: bytes | str) -> None:
    """Write a file aside, down to the disk, and rename it; a failure leaves what was there and names the reason."""
    with aside(path) as part, explained(path), part.open("wb") as file:
        file.write(data.encode() if isinstance(data, str) else data)
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn an error of the operating system (no permission, disk full) into one sentence about `path`."""
    try:
        yield
    except OSError as error:
        raise DetkitError(f"{path}: cannot be written: {error.strerror or error}") from None
