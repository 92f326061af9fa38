"""The proposals of a data set's pictures, made once and kept on disk.

    <cache>/<settings>/settings.json     what they were made with
    <cache>/<settings>/<picture>.npy     [P, 5] float32: box and score, best first

Both names are digests: of the settings and the version of the method, and of the picture's file, so that a data set
may move, and a picture that changes gets new proposals. A run that was stopped goes on where it was; files are whole
or not there, and several processes may fill one cache.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from detkit.data.ahead import read_ahead
from detkit.data.picture import MAX_PIXELS
from detkit.data.sample import Dataset, Sample
from detkit.errors import DetkitError
from detkit.files import aside, explained, write_atomically
from detkit.regions import FileConfig, ProposalConfig, Proposals, propose

CACHE = Path("runs/proposals")
"""Where commands keep proposals unless told otherwise."""

_VERSION = 2  # to be raised when a method gives other boxes for the same settings


def proposals_of(
    dataset: Dataset,
    config: ProposalConfig,
    cache: Path | None = CACHE,
    *,
    workers: int | None = None,
    max_pixels: int = MAX_PIXELS,
    advance: Callable[[bool], None] = lambda cached: None,
) -> list[Proposals]:
    """Return the proposals of each picture of a data set, in its order, from the cache as far as they are there.

    cache: a folder; None keeps nothing on disk. workers: threads that make proposals at once, by default one for each
    core; the work is done in code that does not hold Python's lock. advance is called for every picture, with whether
    its proposals were in the cache. Errors: a picture that cannot be read, a cache that cannot be written, and those
    of `propose`.
    """
    kept = None if cache is None or isinstance(config, FileConfig) else _Kept(cache, config)
    jobs = (partial(_make, sample, config, kept, max_pixels) for sample in dataset.samples)
    workers = workers or os.cpu_count() or 1
    found = []
    with closing(read_ahead(jobs, lambda result: 0, workers=workers, ahead=2 * workers)) as results:
        for proposals, cached in results:
            found.append(proposals)
            advance(cached)
    return found


class _Kept:
    """The part of a cache that belongs to one configuration."""

    def __init__(self, cache: Path, config: ProposalConfig) -> None:
        settings = config.model_dump_json()
        self.folder = cache / _digest(f"{_VERSION} {settings}".encode())
        if not (self.folder / "settings.json").is_file():
            write_atomically(self.folder / "settings.json", settings + "\n")

    def path(self, sample: Sample) -> Path:
        """Return the file of a picture's proposals."""
        if sample.draw is not None:
            return self.folder / f"{_digest(sample.draw().tobytes())}.npy"
        try:
            content = sample.path.read_bytes()
        except OSError as error:
            raise DetkitError(f"{sample.path}: cannot be read: {error.strerror}") from None
        view = f"{sample.height} {sample.width} {sample.oriented}".encode()  # what decides how the file is turned
        return self.folder / f"{_digest(content + view)}.npy"

    def read(self, path: Path) -> Proposals | None:
        """Return what a file holds; None when it is not there or no such table, as after a failure of the disk."""
        try:
            table: NDArray[np.float32] = np.load(path, allow_pickle=False)
        except (OSError, ValueError, EOFError):
            return None
        if table.ndim != 2 or table.shape[1] != 5 or table.dtype != np.float32:
            return None
        return Proposals(np.ascontiguousarray(table[:, :4]), table[:, 4].copy())

    def write(self, path: Path, proposals: Proposals) -> None:
        """Keep proposals."""
        with aside(path) as part, explained(path), part.open("wb") as file:
            np.save(file, np.column_stack([proposals.boxes, proposals.scores]))


def _make(sample: Sample, config: ProposalConfig, kept: _Kept | None, max_pixels: int) -> tuple[Proposals, bool]:
    path = None if kept is None else kept.path(sample)
    if kept is not None and path is not None and (proposals := kept.read(path)) is not None:
        return proposals, True
    proposals = propose(sample.read(max_pixels=max_pixels), config, str(sample.path))
    if kept is not None and path is not None:
        kept.write(path, proposals)
    return proposals, False


def _digest(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=16).hexdigest()
