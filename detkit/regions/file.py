"""Proposals made before: a file of JSON lines, one picture each.

A line is what `detkit propose --json` prints: `{"source": "dog.jpg", "width": 768, "height": 576, "proposals":
[{"box": [x1, y1, x2, y2], "score": 0.5}, …]}`. A picture is looked up by its name as it stands there, else by its
file's name alone, so that a file made in another folder serves.
"""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from detkit.config import Strict, validate
from detkit.errors import DetkitError, nearest
from detkit.regions import Proposals

_ROUNDING = 0.01  # pixels by which a box may leave its picture


class _Proposal(Strict):
    box: tuple[float, float, float, float]
    score: float = 1.0


class _Line(Strict):
    source: str
    width: int = Field(ge=1)
    height: int = Field(ge=1)
    proposals: list[_Proposal]


@dataclass(frozen=True, slots=True)
class ProposalFile:
    """The lines of a file: by source, size (height, width) and proposals; and the sources of each file's name."""

    path: Path
    lines: dict[str, tuple[tuple[int, int], Proposals]] = field(default_factory=dict)
    names: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))

    def find(self, source: str, size_hw: tuple[int, int]) -> Proposals:
        """Return the proposals of a picture of (height, width).

        Raises DetkitError when there is no line for it, several fit by name alone, or the sizes differ.
        """
        name = Path(source).name
        fitting = [source] if source in self.lines else self.names.get(name, [])
        if not fitting:
            raise DetkitError(f"{self.path}: has no line for the picture {source}{nearest(name, self.names)}")
        if len(fitting) > 1:
            raise DetkitError(
                f"{self.path}: the picture {source} could be {' or '.join(fitting[:3])}; name it as there"
            )
        recorded, proposals = self.lines[fitting[0]]
        if recorded != size_hw:
            raise DetkitError(
                f"{self.path}: the proposals of {source} are for a picture {recorded[1]} wide and {recorded[0]} high, "
                f"but it is {size_hw[1]} wide and {size_hw[0]} high"
            )
        return proposals


def read_proposals(path: Path) -> ProposalFile:
    """Read a file of proposals, once as long as it does not change; errors name the line."""
    try:
        state = path.stat()
        return _read(path, state.st_size, state.st_mtime_ns)
    except OSError as error:
        raise DetkitError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise DetkitError(f"{path}: is not a text file, so it cannot be JSON lines") from None


@lru_cache(4)
def _read(path: Path, size: int, changed: int) -> ProposalFile:
    found = ProposalFile(path)
    with path.open(encoding="utf-8") as file:
        for number, text in enumerate(file, 1):
            if not text.strip():
                continue
            where = f"{path}, line {number}"
            try:
                tree = json.loads(text)
            except ValueError as error:
                raise DetkitError(f"{where}: is not valid JSON: {error}") from None
            source, size_hw, proposals = _parse(tree, where)
            if source in found.lines:
                raise DetkitError(f"{where}: the picture {source} stood on a line before; leave one of them out")
            found.lines[source] = size_hw, proposals
            found.names[Path(source).name].append(source)
    return found


def _parse(tree: Any, where: str) -> tuple[str, tuple[int, int], Proposals]:
    if not isinstance(tree, dict):
        raise DetkitError(f"{where}: expected a mapping with source, width, height and proposals")
    if "frame" in tree:
        raise DetkitError(f"{where}: is of a video; only proposals of pictures can be looked up")
    line = validate(_Line, tree, where)
    boxes = np.array([proposal.box for proposal in line.proposals], np.float64).reshape(-1, 4)
    scores = np.array([proposal.score for proposal in line.proposals], np.float32)
    limit = np.array([line.width, line.height] * 2)
    wrong = (boxes[:, :2] >= boxes[:, 2:]).any(1) | (boxes < -_ROUNDING).any(1) | (boxes > limit + _ROUNDING).any(1)
    if wrong.any():
        row = int(wrong.argmax())
        raise DetkitError(
            f"{where}: proposals.{row}.box: expected left < right and top < bottom inside a picture {line.width} wide "
            f"and {line.height} high, got {boxes[row].tolist()}"
        )
    best_first = np.argsort(-scores, kind="stable")
    clipped = boxes[best_first].clip(0, limit).astype(np.float32)
    _, rows = np.unique(clipped, axis=0, return_index=True)  # of a box that stands twice, the first
    rows.sort()
    return line.source, (line.height, line.width), Proposals(clipped[rows], scores[best_first][rows])
