"""Where results go: a folder of their own for every run."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from detkit.errors import DetkitError
from detkit.files import explained, new_folder


@contextmanager
def run_folder(kind: str, out: Path | None) -> Iterator[Path]:
    """Make and give the folder `out`, or the next `runs/kind/<n>`; if the block fails, new folders left empty go."""
    if out is not None:
        with new_folder(out):
            yield out
        return
    with new_folder(Path("runs") / kind):
        folder = next_run(kind)
        try:
            yield folder
        except BaseException:
            with suppress(OSError):  # not empty
                folder.rmdir()
            raise


def next_run(kind: str, root: str | Path = "runs") -> Path:
    """Create and return the next free numbered folder, `root/kind/<n>`; two processes never get the same one."""
    parent = Path(root) / kind
    with explained(parent):
        parent.mkdir(parents=True, exist_ok=True)
        taken = [int(path.name) for path in parent.iterdir() if re.fullmatch(r"[0-9]+", path.name)]
        number = max(taken, default=0)
        while True:
            number += 1
            folder = parent / str(number)
            try:
                folder.mkdir()
            except FileExistsError:
                continue
            return folder


def require_free(folder: Path) -> None:
    """Raise DetkitError when a folder that results are to go to holds something already."""
    with explained(folder):
        if folder.exists() and not folder.is_dir():
            raise DetkitError(f"{folder}: is a file; pass a folder for the results")
        if folder.is_dir() and any(folder.iterdir()):
            raise DetkitError(f"{folder}: is not empty and nothing is overwritten; pass a new folder or empty this one")
