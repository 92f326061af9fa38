"""Regions of interest: features of a fixed size from boxes of any size.

Shapes: B pictures, L maps [B, C, h, w] of rising strides, R regions as boxes [R, 4] xyxy pixels of the network's input
with the number of their picture [R] int64, S × S cells for each region.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import NonNegativeInt, PositiveInt
from torch import Tensor
from torchvision.ops import roi_align, roi_pool

from detkit.config import Strict
from detkit.ops.boxes import area


class Pooling(Strict):
    """How the features of a region are taken from a map.

    method: `max` is RoI max-pooling: the region is rounded to whole cells of the map, edges included, and split into
    S × S parts that overlap by their rounding (Fast R-CNN, section 2.1); `align` is RoIAlign: bilinear samples without
    any rounding (Mask R-CNN, arXiv 1703.06870, section 3). size: S. sampling: bilinear samples a side of each cell, 0
    for as many as the cell has of the map's. half_pixel: a map's cell has its value in its middle; without it at its
    corner, as the first implementations had it.
    """

    method: Literal["max", "align"] = "max"
    size: PositiveInt = 7
    sampling: NonNegativeInt = 2
    half_pixel: bool = True


def roi_features(
    maps: Sequence[Tensor], strides: Sequence[int], picture: Tensor, boxes: Tensor, pooling: Pooling
) -> Tensor:
    """Take the features of each region from the map that its size asks for: [R, C, S, S] float32."""
    regions = torch.cat([picture[:, None].to(boxes.dtype), boxes], 1)
    if len(maps) == 1:
        return _pool(maps[0], regions, strides[0], pooling)
    level = pyramid_level(boxes, strides)
    size = pooling.size
    result = boxes.new_zeros(len(boxes), maps[0].shape[1], size, size)
    for i, (x, stride) in enumerate(zip(maps, strides, strict=True)):
        rows = (level == i).nonzero()[:, 0]
        result.index_copy_(0, rows, _pool(x, regions[rows], stride, pooling))
    return result


def pyramid_level(boxes: Tensor, strides: Sequence[int]) -> Tensor:
    """The index of the map for boxes [R, 4]: a box of 224² pixels gets stride 16, one of half the side the next finer.

    Feature Pyramid Networks for Object Detection (Lin et al., 2017, arXiv 1612.03144), eq. 1; [R] int64, bounded by the
    maps that there are.
    """
    first, last = strides[0].bit_length() - 1, strides[-1].bit_length() - 1
    level = (4 + (area(boxes).sqrt() / 224).log2() + 1e-6).floor()
    return level.clamp(first, last).long() - first


def _pool(x: Tensor, regions: Tensor, stride: int, pooling: Pooling) -> Tensor:
    x = x.float()  # in lower precision the corners of the samples would be rounded too
    if pooling.method == "max":
        pooled: Tensor = roi_pool(x, regions, pooling.size, 1 / stride)
    else:
        sampling = pooling.sampling or -1
        pooled = roi_align(x, regions, pooling.size, 1 / stride, sampling, aligned=pooling.half_pixel)
    return pooled
