"""Greedy NMS of a whole batch on the GPU, by Triton: two launches, whatever the batch, and nothing waits for them.

Shapes: B pictures, N candidates each (padded), which come by falling score; K results a picture.

Candidates that suppress each other have one label, so they are first sorted by label: a label's candidates are then
one run, best first. `_suppress` has a program for every 64 positions, which serves the runs that begin there. It walks
over the last of them, 64 candidates at a time: what a kept box of the run suppresses goes, and the 64 settle among
themselves as words of 64 bits, one per candidate, of who would suppress it. `_compact` then brings the survivors of all
labels back into the order of their scores.

Memory is O(B·N), and a candidate is compared with the kept boxes of its label only. The overlaps are those of the CPU
to the bit: `_suppress` is compiled without fused multiply-add.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from detkit.ops.kernels import on_device_of

_BLOCK = 64  # as many as an int64 has bits
_COMPACTED = 1024
_PADDING = 2**31 - 1  # the label of what is no candidate: after all others


def greedy_nms(boxes: Tensor, labels: Tensor | None, count: Tensor, iou: float, length: int) -> tuple[Tensor, Tensor]:
    """Greedy NMS of a batch whose rows come by falling score.

    boxes [B, N, 4] float32, labels [B, N] int64 from 0 to 2³¹ − 2 (None: all suppress each other), count [B] int64 rows
    that hold. Returns index [B, K] int64 of the rows that survive, in order, zero beyond their number [B] int64.
    """
    batch, n = boxes.shape[:2]
    survives = torch.zeros(batch, n, dtype=torch.int8, device=boxes.device)
    index, taken = count.new_zeros(batch, length), torch.zeros_like(count)
    kept = boxes.new_empty(4, batch, n)
    run = order = count  # not read where there are no labels
    blocks = min(n, 1)
    if labels is not None:
        padding = torch.arange(n, device=count.device) >= count[:, None]
        run, order = labels.masked_fill(padding, _PADDING).int().sort(dim=1, stable=True)
        blocks = triton.cdiv(n, _BLOCK)
    boxes, count = boxes.contiguous(), count.contiguous()
    with on_device_of(boxes):
        # A fused multiply-add would round the overlap otherwise than the CPU does.
        _suppress[blocks, batch](
            boxes, run, order, count, kept, survives, n, length, iou,
            labels is not None, _BLOCK, enable_fp_fusion=False,
        )  # fmt: skip
        _compact[(batch,)](survives, count, index, taken, n, length, _COMPACTED)
    return index, taken


@triton.jit
def _corners(boxes, row, step, mask):
    """Load the corners of boxes whose coordinates lie `step` apart."""
    x1 = tl.load(boxes + row, mask, 0.0)
    y1 = tl.load(boxes + row + step, mask, 0.0)
    x2 = tl.load(boxes + row + 2 * step, mask, 0.0)
    y2 = tl.load(boxes + row + 3 * step, mask, 0.0)
    return x1, y1, x2, y2


@triton.jit
def _overlaps(a, b, iou):
    """[len(a), len(b)]: whether intersection > iou · union."""
    ax1, ay1, ax2, ay2 = a
    bx1, by1, bx2, by2 = b
    area_a, area_b = (ax2 - ax1) * (ay2 - ay1), (bx2 - bx1) * (by2 - by1)
    w = tl.minimum(ax2[:, None], bx2[None, :]) - tl.maximum(ax1[:, None], bx1[None, :])
    h = tl.minimum(ay2[:, None], by2[None, :]) - tl.maximum(ay1[:, None], by1[None, :])
    inter = tl.maximum(w, 0.0) * tl.maximum(h, 0.0)
    return inter > iou * (area_a[:, None] + area_b[None, :] - inter)


@triton.jit(do_not_specialize=["n", "limit"])  # which differ from batch to batch
def _suppress(
    boxes, run, order, count, kept, survives, n, limit, iou, labelled: tl.constexpr, block: tl.constexpr
) -> None:  # fmt: skip
    """Mark what survives of the runs that begin in one block of positions."""
    b = tl.program_id(1).to(tl.int64)
    boxes, run, order, survives = boxes + b * n * 4, run + b * n, order + b * n, survives + b * n
    total = tl.load(count + b).to(tl.int32)
    step = tl.num_programs(1).to(tl.int64) * n
    lane = tl.arange(0, block)
    bit = tl.full([block], 1, tl.int64) << lane
    position = tl.program_id(0) * block + lane
    here = position < total
    label = tl.zeros([block], tl.int32)
    begins = here & (position == 0)
    if labelled:
        label = tl.load(run + position, here, -1)
        begins |= here & (label != tl.load(run + position - 1, here & (position > 0), -1))
    here &= position >= tl.min(tl.where(begins, position, n))
    # Only the last run goes on after this block, so of the kept boxes only its own are compared with what follows.
    last = tl.max(tl.where(here, label, -1))
    kept += b * n + tl.max(tl.where(begins, position, 0))
    found = 0
    while tl.sum(here.to(tl.int32)) > 0:
        row = position
        if labelled:
            row = tl.load(order + position, here, 0).to(tl.int32)
        box = _corners(boxes, row * 4, 1, here)
        alive = here
        for first in range(0, found, block):
            known = first + lane < found
            hit = known[:, None] & _overlaps(_corners(kept, first + lane, step, known), box, iou)
            alive &= tl.max(hit.to(tl.int32), 0) == 0
        hit = (lane[:, None] < lane[None, :]) & (label[:, None] == label[None, :]) & _overlaps(box, box, iou)
        stronger = tl.sum(tl.where(hit, bit[:, None], 0), 0)
        # A candidate survives if none of the stronger ones does. Begun anywhere, round t settles the t-th for good
        # (Cluster-NMS, arXiv 2005.03572), so what no longer changes is greedy NMS.
        settled, word = tl.full([], 0, tl.int64), tl.sum(tl.where(alive, bit, 0))
        while word != settled:
            settled = word
            word = tl.sum(tl.where(alive & ((stronger & settled) == 0), bit, 0))
        alive &= (bit & word) != 0
        tl.store(survives + row, tl.full([block], 1, tl.int8), alive)
        goes_on = alive & (label == last)
        place = found + tl.cumsum(goes_on.to(tl.int32), 0) - 1
        x1, y1, x2, y2 = box
        tl.store(kept + place, x1, goes_on)
        tl.store(kept + place + step, y1, goes_on)
        tl.store(kept + place + 2 * step, x2, goes_on)
        tl.store(kept + place + 3 * step, y2, goes_on)
        tl.debug_barrier()  # what one thread has kept, the others read
        found += tl.sum(goes_on.to(tl.int32))
        position += block
        here = (position < total) & (found < limit)  # the best `limit` of all labels hold at most `limit` of this one
        if labelled:
            label = tl.load(run + position, here, -1)
            here &= label == last


@triton.jit(do_not_specialize=["n", "length"])
def _compact(survives, count, index, taken, n, length, block: tl.constexpr) -> None:
    """Write the positions of a picture's survivors, at most `length`, and their number."""
    b = tl.program_id(0).to(tl.int64)
    total = tl.load(count + b).to(tl.int32)
    found, first = 0, 0
    while (first < total) & (found < length):
        position = first + tl.arange(0, block)
        alive = tl.load(survives + b * n + position, position < total, 0).to(tl.int32)
        place = found + tl.cumsum(alive, 0) - 1
        tl.store(index + b * length + place, position.to(tl.int64), (alive > 0) & (place < length))
        found += tl.sum(alive)
        first += block
    tl.store(taken + b, tl.minimum(found, length).to(tl.int64))
