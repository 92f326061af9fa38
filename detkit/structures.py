"""The types that every part of detkit agrees on.

Shapes: B pictures in a batch, H × W the padded network input, M objects of a picture, N rows of a padded table.
Boxes are xyxy in float32 absolute pixels of the picture they belong to; labels are 0 … C-1, background excluded.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


def _move(tensor: Tensor, device: torch.device | str) -> Tensor:
    # A non-blocking copy to the CPU could be read before it is there.
    return tensor.to(device, non_blocking=torch.device(device).type != "cpu")


_NONE = torch.zeros(0, dtype=torch.bool)


@dataclass(frozen=True, slots=True)
class Target:
    """What is true of one picture.

    boxes [M, 4] xyxy pixels, labels [M] int64; crowd [M] and difficult [M] bool mark objects that are neither to be
    learned nor counted as missed (COCO's `iscrowd`, VOC's `difficult`). somewhere [M] bool, by default of none: a crowd
    of which only that is known, as of a picture with a label but no box, whose box is then the whole picture.
    """

    boxes: Tensor
    labels: Tensor
    crowd: Tensor
    difficult: Tensor
    somewhere: Tensor = _NONE

    def __post_init__(self) -> None:
        if self.somewhere is _NONE:
            object.__setattr__(self, "somewhere", torch.zeros_like(self.crowd))

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device | str) -> Target:
        """Return the target on another device."""
        return Target(*(_move(getattr(self, name), device) for name in self.__slots__))


@dataclass(frozen=True, slots=True)
class Batch:
    """What a detector reads.

    images [B, 3, H, W] RGB float 0 … 1, padded to one size; sizes [B, 2] int64 (height, width) of each picture inside
    the padding, which begins where its Placement says (a letterbox centres it); proposals for the detectors that take
    their boxes from outside the network.
    """

    images: Tensor
    sizes: Tensor
    proposals: Candidates | None = None

    def __len__(self) -> int:
        return len(self.images)

    def to(self, device: torch.device | str) -> Batch:
        """Return the batch on another device."""
        proposals = self.proposals.to(device) if self.proposals is not None else None
        return Batch(_move(self.images, device), _move(self.sizes, device), proposals)

    def pin_memory(self) -> Batch:
        """Return the batch in page-locked memory, so that copies to a GPU run beside the computation."""
        proposals = self.proposals.pin_memory() if self.proposals is not None else None
        return Batch(self.images.pin_memory(), self.sizes.pin_memory(), proposals)

    def record_stream(self, stream: torch.cuda.Stream) -> None:
        """Keep the memory of a batch on a GPU until a stream that reads it is done."""
        self.images.record_stream(stream)
        self.sizes.record_stream(stream)
        if self.proposals is not None:
            self.proposals.record_stream(stream)


@dataclass(frozen=True, slots=True)
class Candidates:
    """Boxes with a score and a label, one row per (box, class) pair, for a whole batch in one padded table.

    boxes [B, N, 4], scores [B, N], labels [B, N] int64 (0 … C − 1), count [B] int64: the first `count[b]` rows of
    picture b hold, the others are padding with score 0. What a detector says before selection, what selection leaves,
    and proposals.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    count: Tensor

    def __len__(self) -> int:
        return len(self.count)

    def to(self, device: torch.device | str) -> Candidates:
        """Return the candidates on another device."""
        return Candidates(*(_move(getattr(self, name), device) for name in self.__slots__))

    def pin_memory(self) -> Candidates:
        """Return the candidates in page-locked memory."""
        return Candidates(*(getattr(self, name).pin_memory() for name in self.__slots__))

    def record_stream(self, stream: torch.cuda.Stream) -> None:
        """Keep the memory of candidates on a GPU until a stream that reads them is done."""
        for name in self.__slots__:
            getattr(self, name).record_stream(stream)

    @property
    def valid(self) -> Tensor:
        """[B, N] bool: which rows are no padding."""
        return torch.arange(self.scores.shape[1], device=self.count.device) < self.count[:, None]

    @staticmethod
    def from_flat(picture: Tensor, boxes: Tensor, scores: Tensor, labels: Tensor, batch_size: int) -> Candidates:
        """Pad rows that are sorted by picture into a table.

        picture [K] int64 ascending, boxes [K, 4], scores [K], labels [K]. The table's length is read from the data,
        which on a GPU waits for it.
        """
        count = torch.bincount(picture, minlength=batch_size)
        length = int(count.max()) if len(picture) else 0
        row = torch.arange(len(picture), device=picture.device) - (count.cumsum(0) - count)[picture]
        table = Candidates(
            boxes.new_zeros(batch_size, length, 4),
            scores.new_zeros(batch_size, length),
            labels.new_zeros(batch_size, length),
            count,
        )
        table.boxes[picture, row] = boxes
        table.scores[picture, row] = scores
        table.labels[picture, row] = labels
        return table

    def detections(self, sizes: Sequence[tuple[int, int]]) -> list[Detections]:
        """Split the table by picture, on the CPU; sizes are the (height, width) of the pictures the boxes belong to."""
        table = self.to("cpu")
        return [
            Detections(table.boxes[b, :n], table.scores[b, :n], table.labels[b, :n], size)
            for b, (n, size) in enumerate(zip(table.count.tolist(), sizes, strict=True))
        ]


@dataclass(frozen=True, slots=True)
class Detections:
    """What was found in one picture, best first.

    boxes [N, 4] xyxy pixels of the picture, scores [N], labels [N] int64; size (height, width) of the picture.
    Indexing with an integer, slice, index or mask tensor gives the Detections of those rows.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    size: tuple[int, int]

    def __len__(self) -> int:
        return len(self.scores)

    def __getitem__(self, rows: int | slice | Tensor | list[int]) -> Detections:
        if isinstance(rows, int):
            if not -len(self) <= rows < len(self):
                raise IndexError(f"row {rows} of {len(self)} detections")
            rows = [rows]
        return Detections(self.boxes[rows], self.scores[rows], self.labels[rows], self.size)

    def __iter__(self) -> Iterator[Detections]:
        return (self[i] for i in range(len(self)))
