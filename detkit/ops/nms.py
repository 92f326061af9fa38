"""Selection: from a table of candidates to the few boxes that are reported.

Shapes: B pictures, N candidates a picture (padded), K results a picture.

Greedy non-maximum suppression takes candidates by falling score, equal scores by rising index, and drops a candidate
when a box that was taken before, of the same label unless `class_agnostic`, satisfies in fp32

    intersection > iou · union,   union = area_a + area_b − intersection.

It is exact: nothing but the stated cap bounds it, boxes are compared at their own coordinates, and no clock runs.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import reduce
from typing import Literal

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
    table = _by_score(candidates, selection)
    length = min(selection.max_detections, table.scores.shape[1])
    on_cpu = table.scores.device.type == "cpu"
    compiled = table.scores.shape[1] > _WORTH_COMPILING if on_cpu else kernels.serve(table.scores)
    if selection.method == "greedy" and compiled:
        index, scores, count = _greedy(table, selection, length)
    else:
        index, scores, count = _round_by_round(table, selection, length)
    boxes = table.boxes.gather(1, index[..., None].expand(-1, -1, 4))
    if sizes is not None:
        boxes = box_ops.clip(boxes, sizes[:, :1], sizes[:, 1:])
    padding = torch.arange(length, device=count.device) >= count[:, None]
    return Candidates(
        boxes.masked_fill(padding[..., None], 0), scores.masked_fill(padding, 0),
        table.labels.gather(1, index).masked_fill(padding, 0), count,
    )  # fmt: skip


def warn_of_cap(candidates: Candidates, selection: Selection) -> None:
    """Say that the cap on candidates bites; reads the counts, so call it once the results are on the CPU anyway."""
    if candidates.scores.shape[1] > selection.cap and bool(
        (_enters(candidates, selection).sum(1) > selection.cap).any()
    ):
        warnings.warn(
            f"more than {selection.cap} candidates of a picture are above the score {selection.score}, and only the "
            f"best {selection.cap} enter the selection; raise max_detections or the score to change that",
            stacklevel=2,
        )


def _enters(candidates: Candidates, selection: Selection) -> Tensor:
    """[B, N] bool: which rows are above the score and of a wanted label."""
    enters = candidates.valid & (candidates.scores > selection.score)
    if selection.labels:  # compared one by one: a tensor of them would have to be copied to the device
        enters &= reduce(Tensor.logical_or, (candidates.labels == label for label in selection.labels))
    return enters


def _by_score(candidates: Candidates, selection: Selection) -> Candidates:
    """Sort the rows that enter by falling score, equal ones by rising index, and cut at the cap."""
    enters = _enters(candidates, selection)
    scores = candidates.scores.masked_fill(~enters, -torch.inf)
    scores, order = scores.sort(dim=1, descending=True, stable=True)
    order = order[:, : selection.cap]
    return Candidates(
        candidates.boxes.gather(1, order[..., None].expand(-1, -1, 4)),
        scores[:, : selection.cap],
        candidates.labels.gather(1, order),
        enters.sum(1).clamp(max=selection.cap),
    )


def _greedy(table: Candidates, selection: Selection, length: int) -> tuple[Tensor, Tensor, Tensor]:
    labels = None if selection.class_agnostic else table.labels
    index, count = _compiled_greedy(table.boxes.detach().float(), labels, table.count, selection.iou, length)
    return index, table.scores.gather(1, index), count


@torch.library.custom_op(
    "detkit::greedy_nms",
    mutates_args=(),
    device_types="cpu",
    schema="(Tensor boxes, Tensor? labels, Tensor count, float iou, int length) -> (Tensor, Tensor)",
)
def _compiled_greedy(
    boxes: Tensor, labels: Tensor | None, count: Tensor, iou: float, length: int
) -> tuple[Tensor, Tensor]:
    """Greedy NMS as one operation, so that a network that selects inside can be exported: see kernels/nms_cpu.py."""
    from detkit.ops.kernels.nms_cpu import greedy_nms  # compiles on its first use

    labels = torch.zeros_like(boxes[..., 0], dtype=torch.long) if labels is None else labels.contiguous()
    index, taken = greedy_nms(boxes.contiguous().numpy(), labels.numpy(), count.numpy(), iou, length)
    return torch.from_numpy(index), torch.from_numpy(taken)


@_compiled_greedy.register_kernel("cuda")
def _greedy_on_gpu(
    boxes: Tensor, labels: Tensor | None, count: Tensor, iou: float, length: int
) -> tuple[Tensor, Tensor]:
    from detkit.ops.kernels.select import greedy_nms  # needs Triton

    return greedy_nms(boxes, labels, count, iou, length)


@_compiled_greedy.register_fake
def _shapes_of_greedy(
    boxes: Tensor, labels: Tensor | None, count: Tensor, iou: float, length: int
) -> tuple[Tensor, Tensor]:
    return count.new_empty(len(boxes), length), torch.empty_like(count)


def _round_by_round(table: Candidates, selection: Selection, length: int) -> tuple[Tensor, Tensor, Tensor]:
    """Take the best candidate of every picture, weaken what it overlaps, and repeat: K rounds, no wait, O(B·N) memory.

    The readable reference of greedy NMS, and the path of Soft-NMS, DIoU-NMS and of GPUs without Triton.
    """
    decay = _decay(selection)
    scores = table.scores.clone()
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
        taken_index.append(best)
        taken_score.append(score)
    missing = length - len(taken_index)
    index = torch.cat([*taken_index, table.labels.new_zeros(len(table), missing)], 1)
    score = torch.cat([*taken_score, table.scores.new_full((len(table), missing), -torch.inf)], 1)
    return index, score, (score > selection.score).sum(1)


def _decay(selection: Selection) -> Callable[[Tensor, Tensor], Tensor]:
    """The factor by which a taken box [B, 1, 4] lowers the scores of the others [B, N, 4]."""
    if selection.method == "soft":
        return lambda box, boxes: torch.exp(-box_ops.overlap(box, boxes).square() / selection.sigma)
    if selection.method == "diou":
        return lambda box, boxes: (box_ops.overlap(box, boxes, "diou") <= selection.iou).float()

    def greedy(box: Tensor, boxes: Tensor) -> Tensor:
        inter = box_ops.intersection(box, boxes)
        union = box_ops.area(box) + box_ops.area(boxes) - inter
        return (~(inter > union * selection.iou)).float()

    return greedy
