"""Anchors: boxes of given shapes at every cell of a grid.

Shapes: A anchor shapes, h × w cells of a stride s. Cells run row by row, anchors inside a cell.
"""

import torch
from torch import Tensor


def cell_corners(height: int, width: int, device: torch.device | None = None) -> Tensor:
    """Column and row of every cell, row by row: [height·width, 2] (x, y), in cells."""
    y, x = torch.meshgrid(torch.arange(height, device=device), torch.arange(width, device=device), indexing="ij")
    return torch.stack([x, y], -1).view(-1, 2).float()


def cells_reached(boxes: Tensor, height: int, width: int, stride: int) -> Tensor:
    """Which cells of a grid boxes [M, 4] reach into, [M, height, width] bool."""
    x, y = (torch.arange(n, device=boxes.device) * stride for n in (width, height))
    x1, y1, x2, y2 = boxes[:, :, None].unbind(1)
    across, down = (x < x2) & (x + stride > x1), (y < y2) & (y + stride > y1)
    return down[:, :, None] & across[:, None]


def anchor_boxes(shapes: Tensor, height: int, width: int, stride: int | Tensor, centre: float = 0.5) -> Tensor:
    """Boxes of shapes [A, 2] (w, h in pixels) at every cell of a grid, [height·width·A, 4] xyxy pixels.

    stride: pixels per cell, or [2] of them in x and y. centre: where in its cell a box is centred, 0.5 in the middle
    (YOLO), 0 at the top left corner (Faster R-CNN as torchvision and Detectron2 place them).
    """
    middle = (cell_corners(height, width, shapes.device) + centre) * stride
    half = shapes / 2
    low, high = middle[:, None] - half, middle[:, None] + half
    return torch.cat([low, high], -1).view(-1, 4)


def shape_iou(a: Tensor, b: Tensor) -> Tensor:
    """IoU of boxes that share a centre, by width and height alone: [M, 2] and [N, 2] → [M, N] (YOLOv2, section 2)."""
    inter = torch.minimum(a[:, None], b).prod(-1)
    return inter / (a.prod(-1)[:, None] + b.prod(-1) - inter)
