"""Selection: from a table of candidates to the few boxes that are reported.

Shapes: B pictures, N candidates a picture (padded), K results a picture.

Greedy non-maximum suppression takes candidates by falling score, equal scores by rising index, and drops a candidate
when a box that was taken before, of the same label unless `class_agnostic`, satisfies in fp32

    intersection > iou · union,   union = area_a + area_b − intersection.

It is exact: nothing but the stated cap bounds it, boxes are compared at their own coordinates, and no clock runs.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Sequence
from functools import reduce
from typing import Literal

import numpy as np
import torch
from pydantic import Field, NonNegativeInt
from torch import Tensor

from detkit.config import Strict
from detkit.ops import boxes as box_ops
from detkit.ops import kernels
from detkit.structures import Candidates

# To import the compiler and its code takes seconds in a new process, so a few candidates do without.
_WORTH_COMPILING = 64


class Selection(Strict):
    """What is reported of all that a detector has to say.

    score: candidates must be above it. iou: overlap above which the weaker box of a pair goes. max_detections: results
    a picture. class_agnostic: boxes of different labels suppress each other too. method: `greedy`; `soft` lowers scores
    by exp(−IoU²/σ) instead (Soft-NMS, arXiv 1704.04503) with `sigma`; `diou` compares by DIoU (arXiv 1911.08287).
    labels: only these are reported, all if there are none; the others neither suppress nor count.
    max_candidates: only that many best candidates of a picture enter, or ten times `max_detections` if that is more;
    a warning says when it bites.
    """

    score: float = Field(0.25, ge=0, le=1)
    iou: float = Field(0.45, ge=0, le=1)
    max_detections: int = Field(100, ge=1, le=10**9)
    class_agnostic: bool = False
    method: Literal["greedy", "soft", "diou"] = "greedy"
    sigma: float = Field(0.5, gt=0)
    labels: tuple[NonNegativeInt, ...] = ()
    max_candidates: int = Field(30_000, ge=1, le=10**9)

    @property
    def cap(self) -> int:
        """The number of candidates of one picture that enter."""
        return max(self.max_candidates, 10 * self.max_detections)


def select(candidates: Candidates, selection: Selection, sizes: Tensor | None = None) -> Candidates:
    """Suppress overlapping candidates of a whole batch and keep the best, K ≤ `max_detections`, by falling score.

    sizes [B, 2] (height, width): results are clipped to them. Runs for all pictures at once, and on a GPU without
    waiting for it; K is `max_detections` (at most N), and `count` says how many rows hold.
    """
    length = min(selection.max_detections, candidates.scores.shape[1])
    if selection.method == "greedy":
        boxes, scores = candidates.boxes.detach().float(), candidates.scores.detach().float()
        table = Candidates(boxes, scores, candidates.labels, candidates.count)
        if _compiled(scores):
            index, count = torch.ops.detkit.select(
                boxes, scores, table.labels, table.count, selection.score, selection.iou, selection.cap, length,
                selection.class_agnostic, selection.labels,
            )  # fmt: skip
        else:
            index, _, count = _round_by_round(table, selection, length)
        scores = candidates.scores.gather(1, index)
    else:
        index, scores, count = _round_by_round(candidates, selection, length)
    boxes = candidates.boxes.gather(1, index[..., None].expand(-1, -1, 4))
    if sizes is not None:
        boxes = box_ops.clip(boxes, sizes[:, :1], sizes[:, 1:])
    padding = torch.arange(length, device=count.device) >= count[:, None]
    return Candidates(
        boxes.masked_fill(padding[..., None], 0), scores.masked_fill(padding, 0),
        candidates.labels.gather(1, index).masked_fill(padding, 0), count,
    )  # fmt: skip


def warn_of_cap(candidates: Candidates, selection: Selection) -> None:
    """Say that the cap on candidates bites; reads the counts, so call it once the results are on the CPU anyway."""
    if candidates.scores.shape[1] > selection.cap and bool(
        (_enters(candidates, selection.score, selection.labels).sum(1) > selection.cap).any()
    ):
        warnings.warn(
            f"more than {selection.cap} candidates of a picture are above the score {selection.score}, and only the "
            f"best {selection.cap} enter the selection; raise max_detections or the score to change that",
            stacklevel=2,
        )


def _compiled(scores: Tensor) -> bool:
    """Whether greedy NMS runs compiled: on the CPU where there is enough to do, or the compiler was needed before."""
    if scores.device.type == "cpu":
        return scores.shape[1] > _WORTH_COMPILING or "detkit.ops.kernels.nms_cpu" in sys.modules
    return kernels.serve(scores)


def _enters(candidates: Candidates, score: float, labels: Sequence[int]) -> Tensor:
    """[B, N] bool: which rows are above the score and of a wanted label."""
    enters = candidates.valid & (candidates.scores > score)
    if labels:  # compared one by one: a tensor of them would have to be copied to the device
        enters &= reduce(Tensor.logical_or, (candidates.labels == label for label in labels))
    return enters


def _by_score(candidates: Candidates, score: float, labels: Sequence[int], cap: int) -> tuple[Candidates, Tensor]:
    """Sort the rows that enter by falling score, equal ones by rising index, and cut at the cap; with their indices."""
    enters = _enters(candidates, score, labels)
    scores, order = candidates.scores.masked_fill(~enters, -torch.inf).sort(dim=1, descending=True, stable=True)
    order = order[:, :cap]
    table = Candidates(
        candidates.boxes.gather(1, order[..., None].expand(-1, -1, 4)),
        scores[:, :cap],
        candidates.labels.gather(1, order),
        enters.sum(1).clamp(max=cap),
    )
    return table, order


# One operation, so that a network that selects inside can be compiled and exported.
_library = torch.library.Library("detkit", "FRAGMENT")
_library.define(
    "select(Tensor boxes, Tensor scores, Tensor labels, Tensor count, float score, float iou, int cap, int length, "
    "bool class_agnostic, int[] wanted) -> (Tensor, Tensor)"
)


@torch.library.impl(_library, "select", "CPU")
def _on_cpu(
    boxes: Tensor, scores: Tensor, labels: Tensor, count: Tensor,
    score: float, iou: float, cap: int, length: int, class_agnostic: bool, wanted: Sequence[int],
) -> tuple[Tensor, Tensor]:  # fmt: skip
    from detkit.ops.kernels.nms_cpu import select  # compiles on its first use

    columns = (column.contiguous().numpy() for column in (boxes, scores, labels, count))
    index, taken = select(*columns, np.array(wanted, np.int64), score, iou, cap, length, class_agnostic)
    return torch.from_numpy(index), torch.from_numpy(taken)


@torch.library.impl(_library, "select", "CUDA")
def _on_gpu(
    boxes: Tensor, scores: Tensor, labels: Tensor, count: Tensor,
    score: float, iou: float, cap: int, length: int, class_agnostic: bool, wanted: Sequence[int],
) -> tuple[Tensor, Tensor]:  # fmt: skip
    from detkit.ops.kernels.select import greedy_nms  # needs Triton

    table, order = _by_score(Candidates(boxes, scores, labels, count), score, wanted, cap)
    index, taken = greedy_nms(table.boxes, None if class_agnostic else table.labels, table.count, iou, length)
    return order.gather(1, index), taken


@torch.library.register_fake("detkit::select", lib=_library)  # type: ignore[untyped-decorator]
def _shapes(
    boxes: Tensor, scores: Tensor, labels: Tensor, count: Tensor,
    score: float, iou: float, cap: int, length: int, class_agnostic: bool, wanted: Sequence[int],
) -> tuple[Tensor, Tensor]:  # fmt: skip
    return count.new_empty(len(boxes), length), torch.empty_like(count)


def _round_by_round(candidates: Candidates, selection: Selection, length: int) -> tuple[Tensor, Tensor, Tensor]:
    """Take the best candidate of every picture, weaken what it overlaps, and repeat: K rounds, no wait, O(B·N) memory.

    The readable reference of greedy NMS, and the path of Soft-NMS, DIoU-NMS and of GPUs without Triton: torchvision's
    NMS waits for the GPU after each picture, and divides, so that on a tie it leaves other boxes than these. Returns
    index and scores [B, K] and their number [B].
    """
    decay = _decay(selection)
    table, order = _by_score(candidates, selection.score, selection.labels, selection.cap)
    scores = table.scores
    taken_index, taken_score = [], []
    for _ in range(length):
        score, best = scores.max(1, keepdim=True)
        if scores.device.type == "cpu" and not (score > -torch.inf).any():
            break  # on a GPU, to know that would mean to wait
        box = table.boxes.gather(1, best[..., None].expand(-1, -1, 4))
        factor = decay(box, table.boxes)
        if not selection.class_agnostic:
            factor = torch.where(table.labels == table.labels.gather(1, best), factor, 1)
        scores = torch.where(factor > 0, scores * factor, -torch.inf).scatter(1, best, -torch.inf)
        taken_index.append(order.gather(1, best))
        taken_score.append(score)
    missing = length - len(taken_index)
    index = torch.cat([*taken_index, order.new_zeros(len(order), missing)], 1)
    score = torch.cat([*taken_score, scores.new_full((len(order), missing), -torch.inf)], 1)
    return index, score, (score > selection.score).sum(1)


def _decay(selection: Selection) -> Callable[[Tensor, Tensor], Tensor]:
    """The factor by which a taken box [B, 1, 4] lowers the scores of the others [B, N, 4]; 1 if there is no telling."""
    if selection.method == "soft":
        return lambda box, boxes: torch.exp(-box_ops.overlap(box, boxes).nan_to_num(0).square() / selection.sigma)
    if selection.method == "diou":
        return lambda box, boxes: (~(box_ops.overlap(box, boxes, "diou") > selection.iou)).float()

    def greedy(box: Tensor, boxes: Tensor) -> Tensor:
        inter = box_ops.intersection(box, boxes)
        union = box_ops.area(box) + box_ops.area(boxes) - inter
        return (~(inter > union * selection.iou)).float()

    return greedy
