"""Where boxes come from before a network looks at the picture: windows, a grid, selective search, a file.

Shapes: H × W the picture, P proposals of it. Boxes are xyxy float32 pixels of the picture.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from detkit.config import Strict
from detkit.errors import DetkitError

Mode = Literal["single", "fast", "quality"]
Positive = Annotated[float, Field(gt=0)]


@dataclass(frozen=True, slots=True, eq=False)
class Proposals:
    """Boxes [P, 4] where an object may be, best first, and their scores [P] float32, which mean nothing but the order.

    No box stands twice.
    """

    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.scores)

    def __getitem__(self, rows: slice) -> Proposals:
        return Proposals(self.boxes[rows], self.scores[rows])


class SelectiveSearchConfig(Strict):
    """Selective search: segments of the picture, grouped by likeness until one is left; each group gives its box.

    mode: how many ways of grouping are combined, 1, 8 or 80. max_proposals: keep the best so many; None keeps all.
    min_side: boxes narrower or lower are left out, as the authors' program does; a smaller picture is its own limit.
    longest_side: larger pictures are scaled down to this, since the segments' size is in pixels (the paper's pictures
    have 500); None takes them as they are. seed: of the random part of the order.
    """

    method: Literal["selective-search"] = "selective-search"
    mode: Mode = "fast"
    max_proposals: int | None = Field(None, ge=1)
    min_side: int = Field(20, ge=1)
    longest_side: int | None = Field(500, ge=16)
    seed: int = Field(0, ge=0)


class WindowsConfig(Strict):
    """Windows of fixed sizes at every `stride` pixels, in random order, so that the first are a sample of all.

    scales: side of the square of the window's area, in pixels. aspect_ratios: width / height. The last position of a
    row or column touches the picture's edge, and a window that is larger than the picture is cut to it.
    """

    method: Literal["windows"] = "windows"
    scales: tuple[Positive, ...] = Field((64, 128, 256), min_length=1)
    aspect_ratios: tuple[Positive, ...] = Field((0.5, 1, 2), min_length=1)
    stride: int = Field(16, ge=1)
    max_proposals: int | None = Field(None, ge=1)
    seed: int = Field(0, ge=0)


class GridConfig(Strict):
    """The picture in n × n equal parts for each n of `divisions`, coarse first.

    overlap: the share of a part's side that it has in common with the next; 0 lays the parts side by side.
    """

    method: Literal["grid"] = "grid"
    divisions: tuple[Annotated[int, Field(ge=1, le=10**9)], ...] = Field((1, 2, 4, 8), min_length=1)
    overlap: float = Field(0.5, ge=0, le=0.9)
    max_proposals: int | None = Field(None, ge=1)


class FileConfig(Strict):
    """Boxes from elsewhere: JSON lines as `detkit propose --json` prints them, looked up by the picture's name."""

    method: Literal["file"] = "file"
    path: Path
    max_proposals: int | None = Field(None, ge=1)


ProposalConfig = Annotated[
    SelectiveSearchConfig | WindowsConfig | GridConfig | FileConfig, Field(discriminator="method")
]


METHODS: dict[str, type[SelectiveSearchConfig | WindowsConfig | GridConfig | FileConfig]] = {
    "selective-search": SelectiveSearchConfig,
    "windows": WindowsConfig,
    "grid": GridConfig,
    "file": FileConfig,
}


def propose(picture: NDArray[np.uint8], config: ProposalConfig, source: str | None = None) -> Proposals:
    """Return where an object may be in an RGB picture [H, W, 3], best first; the same for the same picture and config.

    source: the name of the picture, by which a file of proposals is searched. Errors: more windows than memory should
    hold; a file that cannot be read, has no line for the picture, or has one for another size.
    """
    size_hw = picture.shape[0], picture.shape[1]
    if isinstance(config, SelectiveSearchConfig):
        from detkit.regions.selective_search import selective_search

        found = selective_search(picture, config)
    elif isinstance(config, WindowsConfig):
        from detkit.regions.windows import windows

        found = windows(size_hw, config)
    elif isinstance(config, GridConfig):
        from detkit.regions.windows import grid

        found = grid(size_hw, config)
    else:
        from detkit.regions.file import read_proposals

        if source is None:
            raise DetkitError(f"{config.path}: proposals from a file need the picture's name to be looked up by")
        found = read_proposals(config.path).find(source, size_hw)
    return found[: config.max_proposals]
