"""Decoding on the GPU, by Triton: raw outputs of all levels and pictures to candidates.

Shapes: B pictures, C classes, R rows a picture: the anchors of the cells of all its levels, or its regions.

Proposals, whose number is known, take one launch. Others take two.

The first counts the candidates of each row; a cumulative sum says where each row's begin and end, and the second
writes them there, never beyond. So candidates come in the order of the plain path, whatever the order of the threads.
Between the launches the host waits once, for the length of the table. Objectness bounds the score: of a cell that it
rejects nothing else is read, and the second launch looks only at rows that have candidates.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

import torch
import triton
import triton.language as tl
from torch import Tensor

from detkit.ops.boxes import LARGEST_LOG, DeltaWeights
from detkit.ops.kernels import on_device_of
from detkit.structures import Candidates

_ROWS = 128  # of a program
_DENSE = 16  # of these, as many are looked at together
_CHUNK = 64  # classes at once


def yolo_candidates(
    maps: Sequence[Tensor],
    anchors: Sequence[Tensor],
    size_hw: tuple[int, int],
    threshold: float,
    scale_xy: Sequence[float] | None,
    softmax: bool,
) -> Candidates:
    """Raw maps of YOLOv3 or YOLOv2 to candidates, as `detkit.ops.yolo.yolo_candidates` describes it."""
    levels, tiles, rows = [], 0, 0
    dtype = reduce(torch.promote_types, (raw.dtype for raw in maps))
    for i, (raw, sizes) in enumerate(zip(maps, anchors, strict=True)):
        height, width = raw.shape[2:]
        raw, by_cell = _even(raw.to(dtype))
        levels.append((
            raw, sizes.float().contiguous(), raw.stride(0), raw.stride(1), by_cell, width, height * width, len(sizes),
            size_hw[1] / width, size_hw[0] / height, float(scale_xy[i]) if scale_xy is not None else 1.0, tiles, rows,
        ))  # fmt: skip
        tiles += triton.cdiv(height * width * len(sizes), _ROWS)
        rows += height * width * len(sizes)
    batch, classes = len(maps[0]), maps[0].shape[1] // len(anchors[0]) - 5
    count = torch.zeros(batch, rows, dtype=torch.int32, device=maps[0].device)
    # Without fused multiply-add both launches round alike, so that they agree about what is above the threshold.
    options = {"chunk": _chunk(classes), "enable_fp_fusion": False}
    arguments = tuple(levels), rows, classes, threshold, softmax
    with on_device_of(count):
        _yolo[tiles, batch](*arguments, count, count, count, count, count, 0, False, _ROWS, _DENSE, **options)
        end, table = _table(count)
        _yolo[tiles, batch](
            *arguments, count, end, table.boxes, table.scores, table.labels, table.scores.shape[1],
            True, _ROWS, _DENSE, **options,
        )  # fmt: skip
    return table


def region_candidates(
    logits: Tensor, deltas: Tensor, regions: Tensor, valid: Tensor, limits: Tensor, threshold: float,
    weights: DeltaWeights, thinnest: float,
) -> Candidates:  # fmt: skip
    """What a head says of regions to candidates, as `detkit.detectors.fast_rcnn.region_candidates` describes it.

    logits [B, R, C + 1], deltas [B, R, C, 4] from regions [B, R, 4] of which valid [B, R] hold; boxes are clipped to
    limits [B, 2] (height, width), and those with a side below `thinnest` are left out.
    """
    batch, rows, classes = deltas.shape[:3]
    logits, deltas, regions, valid = (x.contiguous() for x in (logits, deltas, regions.float(), valid))
    count = torch.zeros(batch, rows, dtype=torch.int32, device=logits.device)
    grid = triton.cdiv(rows, _DENSE), batch
    options = {"chunk": _chunk(classes), "enable_fp_fusion": False}
    arguments = (
        logits, deltas, regions, valid, limits.float().contiguous(), rows, classes, threshold,
        tuple(map(float, weights)), LARGEST_LOG, thinnest,
    )  # fmt: skip
    with on_device_of(count):
        _regions[grid](*arguments, count, count, count, count, count, 0, False, _DENSE, **options)
        end, table = _table(count)
        _regions[grid](
            *arguments, count, end, table.boxes, table.scores, table.labels, table.scores.shape[1],
            True, _DENSE, **options,
        )  # fmt: skip
    return table


def proposal_candidates(
    deltas: Sequence[Tensor], best: Sequence[tuple[Tensor, Tensor]],
    grids: Sequence[tuple[Tensor, int, int, tuple[int, int]]], limits: Tensor, thinnest: float,
) -> Candidates:  # fmt: skip
    """The best anchors of an RPN to candidates, as `detkit.detectors.faster_rcnn.FasterRCNN.propose` describes it.

    Of each level: deltas [B, A·4, h, w]; logits and rows [B, K] of its best anchors; the grid of its anchors: shapes
    [A, 2], height, width and stride (x, y). Boxes are clipped to limits [B, 2] (height, width); those with a side below
    `thinnest` score 0.
    """
    logits, rows = zip(*best, strict=True)
    shapes, _, widths, strides = zip(*grids, strict=True)
    geometry = [number for width, stride in zip(widths, strides, strict=True) for number in (width, *stride)]
    boxes, scores, labels = _columns_of_proposals(deltas, logits, rows, shapes, geometry, limits, thinnest)
    return Candidates(boxes, scores, labels, torch.full_like(labels[:, 0], labels.shape[1]))


# One operation, so that a network that proposes inside can be compiled.
@torch.library.custom_op(
    "detkit::proposals",
    mutates_args=(),
    schema="(Tensor[] deltas, Tensor[] logits, Tensor[] rows, Tensor[] shapes, SymInt[] geometry, Tensor limits, "
    "float thinnest) -> (Tensor, Tensor, Tensor)",
)
def _columns_of_proposals(
    deltas: Sequence[Tensor], logits: Sequence[Tensor], rows: Sequence[Tensor], shapes: Sequence[Tensor],
    geometry: Sequence[int], limits: Tensor, thinnest: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Boxes, scores and labels; geometry: width in cells and stride (x, y) of each level."""
    boxes, scores, labels = _empty_columns(limits, rows)
    levels, tiles, before = [], 0, 0
    dtype = reduce(torch.promote_types, (raw.dtype for raw in deltas))
    for level, raw in enumerate(deltas):
        raw, by_cell = _even(raw.to(dtype))
        width, stride_x, stride_y = geometry[3 * level : 3 * level + 3]
        length = rows[level].shape[1]
        levels.append((
            level, raw, logits[level].contiguous(), rows[level].contiguous(), shapes[level].float().contiguous(),
            raw.stride(0), raw.stride(1), by_cell, width, len(shapes[level]), float(stride_x), float(stride_y), length,
            tiles, before,
        ))  # fmt: skip
        tiles += triton.cdiv(length, _ROWS)
        before += length
    with on_device_of(limits):
        _proposals[tiles, len(limits)](
            tuple(levels), limits.float().contiguous(), LARGEST_LOG, thinnest, boxes, scores, labels, before, _ROWS,
            enable_fp_fusion=False,
        )  # fmt: skip
    return boxes, scores, labels


@_columns_of_proposals.register_fake
def _shapes_of_proposals(
    deltas: Sequence[Tensor], logits: Sequence[Tensor], rows: Sequence[Tensor], shapes: Sequence[Tensor],
    geometry: Sequence[int], limits: Tensor, thinnest: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    return _empty_columns(limits, rows)


def _empty_columns(limits: Tensor, rows: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    boxes = limits.new_empty(len(limits), sum(row.shape[1] for row in rows), 4, dtype=torch.float32)
    return boxes, torch.empty_like(boxes[..., 0]), rows[0].new_empty(boxes.shape[:2])


def _even(raw: Tensor) -> tuple[Tensor, int]:
    """A map [B, channels, h, w] whose cells lie evenly apart, as NCHW and channels-last have them, and how far."""
    height, width = raw.shape[2:]
    if height > 1 and width > 1 and raw.stride(2) != width * raw.stride(3):  # of one row or column any stride is right
        raw = raw.contiguous()
    return raw, raw.stride(3 if width > 1 else 2)


def _chunk(classes: int) -> int:
    return min(_CHUNK, int(triton.next_power_of_2(max(classes, 1))))


def _table(count: Tensor) -> tuple[Tensor, Candidates]:
    """Where the candidates of each row end, [B, R] like their count, and an empty table for them."""
    end = count.cumsum(1, dtype=torch.int32)
    total = count.sum(1)
    shape = len(count), int(total.max()) if len(count) else 0
    boxes = torch.zeros(*shape, 4, device=count.device)
    return end, Candidates(boxes, torch.zeros_like(boxes[..., 0]), total.new_zeros(shape), total)


@triton.jit(do_not_specialize=["rows", "n"])  # the second differs from batch to batch
def _yolo(
    levels, rows, classes, threshold, softmax: tl.constexpr, count, end, boxes, scores, labels, n,
    write: tl.constexpr, block: tl.constexpr, dense: tl.constexpr, chunk: tl.constexpr,
) -> None:  # fmt: skip
    """Count or write the candidates of one block of a level's anchors in one picture."""
    tile, b = tl.program_id(0), tl.program_id(1).to(tl.int64)
    raw, anchors, by_picture, by_channel, by_cell, width, cells, per_cell, stride_x, stride_y, scale, start, before = (
        levels[0]
    )
    for i in tl.static_range(1, len(levels)):
        if tile >= levels[i][11]:
            (
                raw, anchors, by_picture, by_channel, by_cell, width, cells, per_cell, stride_x, stride_y, scale,
                start, before,
            ) = levels[i]  # fmt: skip
    tile -= start
    raw += b * by_picture
    count, end = count + b * rows + before, end + b * rows + before
    boxes, scores, labels = boxes + b * n * 4, scores + b * n, labels + b * n
    fields = (5 + classes) * by_channel
    every = tile * block + tl.arange(0, block)
    inside = every < cells * per_cell
    if write:
        passes = tl.load(count + every, inside, 0) > 0
    else:
        objectness = raw + every % per_cell * fields + every // per_cell * by_cell + 4 * by_channel
        passes = inside & (tl.sigmoid(tl.load(objectness, inside, 0).to(tl.float32)) > threshold)
    rank = tl.cumsum(passes.to(tl.int32), 0)
    passed = tl.sum(passes.to(tl.int32))
    for first in range(0, passed, dense):
        slot = first + tl.arange(0, dense)
        here = slot < passed
        # The row of the n-th that passes: as many rows have a lower rank.
        row = tile * block + tl.sum((rank[None, :] <= slot[:, None]).to(tl.int32), 1)
        cell, anchor = row // per_cell, row % per_cell
        at = raw + anchor * fields + cell * by_cell
        sure = tl.sigmoid(tl.load(at + 4 * by_channel, here, 0).to(tl.float32))
        if softmax:
            top, total = _softmax_of(at + 5 * by_channel, by_channel, classes, here, dense, chunk)
        if write:
            stop = tl.load(end + row, here, 0)
            begin = stop - tl.load(count + row, here, 0)
            tx, ty = tl.load(at, here, 0).to(tl.float32), tl.load(at + by_channel, here, 0).to(tl.float32)
            tw, th = tl.load(at + 2 * by_channel, here, 0), tl.load(at + 3 * by_channel, here, 0)
            half_w = tl.load(anchors + 2 * anchor, here, 0) * tl.exp(tw.to(tl.float32)) / 2
            half_h = tl.load(anchors + 2 * anchor + 1, here, 0) * tl.exp(th.to(tl.float32)) / 2
            x = (cell % width + (tl.sigmoid(tx) * scale - (scale - 1) / 2)) * stride_x
            y = (cell // width + (tl.sigmoid(ty) * scale - (scale - 1) / 2)) * stride_y
        found = tl.zeros([dense], tl.int32)
        for c in range(0, classes, chunk):
            label = c + tl.arange(0, chunk)
            mask = here[:, None] & (label < classes)[None, :]
            said = tl.load(at[:, None] + (5 + label)[None, :] * by_channel, mask, -float("inf")).to(tl.float32)
            if softmax:
                score = sure[:, None] * (tl.exp(said - top[:, None]) / total[:, None])
            else:
                score = sure[:, None] * tl.sigmoid(said)
            hit = mask & (score > threshold)
            if write:
                place = begin[:, None] + found[:, None] + tl.cumsum(hit.to(tl.int32), 1) - 1
                _write(
                    boxes, scores, labels, place, (x - half_w)[:, None], (y - half_h)[:, None], (x + half_w)[:, None],
                    (y + half_h)[:, None], score, label[None, :], hit & (place < stop[:, None]),
                )  # fmt: skip
            found += tl.sum(hit.to(tl.int32), 1)
        if not write:
            tl.store(count + row, found, here)


@triton.jit
def _softmax_of(at, step, classes, here, dense: tl.constexpr, chunk: tl.constexpr):
    """The largest of each row's logits, `step` apart, and the sum of the others' exponentials relative to it."""
    top = tl.full([dense], -float("inf"), tl.float32)
    for c in range(0, classes, chunk):
        label = c + tl.arange(0, chunk)
        mask = here[:, None] & (label < classes)[None, :]
        said = tl.load(at[:, None] + label[None, :] * step, mask, -float("inf")).to(tl.float32)
        top = tl.maximum(top, tl.max(said, 1))
    total = tl.zeros([dense], tl.float32)
    for c in range(0, classes, chunk):
        label = c + tl.arange(0, chunk)
        mask = here[:, None] & (label < classes)[None, :]
        said = tl.load(at[:, None] + label[None, :] * step, mask, -float("inf")).to(tl.float32)
        total += tl.sum(tl.exp(said - top[:, None]), 1)
    return top, total


@triton.jit
def _write(boxes, scores, labels, place, x1, y1, x2, y2, score, label, hit):
    """Write candidates where they are `hit`; corners and labels broadcast."""
    tl.store(scores + place, score, hit)
    tl.store(labels + place, tl.broadcast_to(label, hit.shape).to(tl.int64), hit)
    tl.store(boxes + place * 4, tl.broadcast_to(x1, hit.shape), hit)
    tl.store(boxes + place * 4 + 1, tl.broadcast_to(y1, hit.shape), hit)
    tl.store(boxes + place * 4 + 2, tl.broadcast_to(x2, hit.shape), hit)
    tl.store(boxes + place * 4 + 3, tl.broadcast_to(y2, hit.shape), hit)


@triton.jit(do_not_specialize=["rows", "n"])
def _regions(
    logits, deltas, regions, valid, limits, rows, classes, threshold, weights, largest, thinnest,
    count, end, boxes, scores, labels, n, write: tl.constexpr, dense: tl.constexpr, chunk: tl.constexpr,
) -> None:  # fmt: skip
    """Count or write the candidates of a few regions of one picture."""
    b = tl.program_id(1).to(tl.int64)
    count, end = count + b * rows, end + b * rows
    boxes, scores, labels = boxes + b * n * 4, scores + b * n, labels + b * n
    row = tl.program_id(0) * dense + tl.arange(0, dense)
    here = row < rows
    here &= tl.load(valid + b * rows + row, here, 0) != 0
    if write:
        here &= tl.load(count + row, here, 0) > 0
        stop = tl.load(end + row, here, 0)
        begin = stop - tl.load(count + row, here, 0)
    at = logits + (b * rows + row) * (classes + 1)
    top, total = _softmax_of(at, 1, classes + 1, here, dense, chunk)
    region = regions + (b * rows + row) * 4
    left, upper = tl.load(region, here, 0), tl.load(region + 1, here, 0)
    right, lower = tl.load(region + 2, here, 0), tl.load(region + 3, here, 0)
    w, h, x, y = (
        (right - left)[:, None],
        (lower - upper)[:, None],
        (left + right)[:, None] / 2,
        (upper + lower)[:, None] / 2,
    )
    height, width = tl.load(limits + 2 * b), tl.load(limits + 2 * b + 1)
    found = tl.zeros([dense], tl.int32)
    for c in range(0, classes, chunk):
        label = c + tl.arange(0, chunk)
        mask = here[:, None] & (label < classes)[None, :]
        said = tl.load(at[:, None] + label[None, :], mask, -float("inf")).to(tl.float32)
        score = tl.exp(said - top[:, None]) / total[:, None]
        hit = mask & (score > threshold)
        delta = deltas + ((b * rows + row) * classes)[:, None] * 4 + label[None, :] * 4
        centre_x = tl.load(delta, hit, 0).to(tl.float32) / weights[0] * w + x
        centre_y = tl.load(delta + 1, hit, 0).to(tl.float32) / weights[1] * h + y
        half_w = _growth(tl.load(delta + 2, hit, 0).to(tl.float32) / weights[2], largest) * w / 2
        half_h = _growth(tl.load(delta + 3, hit, 0).to(tl.float32) / weights[3], largest) * h / 2
        x1, x2 = _clip(centre_x - half_w, width), _clip(centre_x + half_w, width)
        y1, y2 = _clip(centre_y - half_h, height), _clip(centre_y + half_h, height)
        hit &= (x2 - x1 >= thinnest) & (y2 - y1 >= thinnest)
        if write:
            place = begin[:, None] + found[:, None] + tl.cumsum(hit.to(tl.int32), 1) - 1
            _write(boxes, scores, labels, place, x1, y1, x2, y2, score, label[None, :], hit & (place < stop[:, None]))
        found += tl.sum(hit.to(tl.int32), 1)
    if not write:
        tl.store(count + row, found, here)


@triton.jit(do_not_specialize=["n"])
def _proposals(levels, limits, largest, thinnest, boxes, scores, labels, n, block: tl.constexpr) -> None:
    """Write the candidates of a block of a level's best anchors in one picture."""
    tile, b = tl.program_id(0), tl.program_id(1).to(tl.int64)
    (
        level, raw, logits, rows, shapes, by_picture, by_channel, by_cell, columns, per_cell, stride_x, stride_y,
        length, start, before,
    ) = levels[0]  # fmt: skip
    for i in tl.static_range(1, len(levels)):
        if tile >= levels[i][13]:
            (
                level, raw, logits, rows, shapes, by_picture, by_channel, by_cell, columns, per_cell, stride_x,
                stride_y, length, start, before,
            ) = levels[i]  # fmt: skip
    slot = (tile - start) * block + tl.arange(0, block)
    here = slot < length
    row = tl.load(rows + b * length + slot, here, 0)
    cell, anchor = row // per_cell, row % per_cell
    w, h = tl.load(shapes + 2 * anchor, here, 0), tl.load(shapes + 2 * anchor + 1, here, 0)
    x, y = (cell % columns).to(tl.float32) * stride_x, (cell // columns).to(tl.float32) * stride_y
    at = raw + b * by_picture + anchor * 4 * by_channel + cell * by_cell
    centre_x = tl.load(at, here, 0).to(tl.float32) * w + x
    centre_y = tl.load(at + by_channel, here, 0).to(tl.float32) * h + y
    half_w = _growth(tl.load(at + 2 * by_channel, here, 0).to(tl.float32), largest) * w / 2
    half_h = _growth(tl.load(at + 3 * by_channel, here, 0).to(tl.float32), largest) * h / 2
    height, width = tl.load(limits + 2 * b), tl.load(limits + 2 * b + 1)
    x1, x2 = _clip(centre_x - half_w, width), _clip(centre_x + half_w, width)
    y1, y2 = _clip(centre_y - half_h, height), _clip(centre_y + half_h, height)
    score = tl.sigmoid(tl.load(logits + b * length + slot, here, 0))
    score = tl.where((x2 - x1 >= thinnest) & (y2 - y1 >= thinnest), score, 0.0)
    label = tl.zeros([block], tl.int32) + level
    _write(boxes, scores, labels, b * n + before + slot, x1, y1, x2, y2, score, label, here)


@triton.jit
def _growth(log, largest):
    """How much larger a side is, exp of what is not a number included."""
    return tl.exp(tl.where(log > largest, largest, log))


@triton.jit
def _clip(x, limit):
    """Cut a coordinate to 0 … limit; what is not a number stays that."""
    x = tl.where(x < 0, 0.0, x)
    return tl.where(x > limit, limit, x)
