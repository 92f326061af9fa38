"""What the networks that are written here share: which maps are wanted, pictures of any size, positions, first weights.

Shapes: B pictures of H × W, C channels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from detkit.backbones.base import Backbone


def declare(backbone: Backbone, strides: Sequence[int], channels: Mapping[int, int]) -> None:
    """Set a backbone's strides and channels to those of the maps wanted; channels: of all its maps, by stride.

    Raises ValueError where it has no map of a stride.
    """
    unknown = set(strides) - set(channels)
    if unknown:
        raise ValueError(f"no map of stride {min(unknown)}: this backbone has {', '.join(map(str, channels))}")
    backbone.strides = tuple(sorted(strides))
    backbone.channels = tuple(channels[stride] for stride in backbone.strides)


def padded(x: Tensor, multiple: int) -> Tensor:
    """Zeros right and below up to whole multiples: [B, C, H, W] → [B, C, ⌈H / multiple⌉ · multiple, …]."""
    height, width = x.shape[-2:]
    if height % multiple == 0 and width % multiple == 0:
        return x
    return F.pad(x, (0, -width % multiple, 0, -height % multiple))


def cropped(x: Tensor, images: Tensor, stride: int) -> Tensor:
    """What of a map belongs to the pictures and not to their padding: [B, C, ⌈H / stride⌉, ⌈W / stride⌉]."""
    height, width = (-(-side // stride) for side in images.shape[-2:])
    return x[..., :height, :width]


def positions(table: Tensor, size_hw: tuple[int, int]) -> Tensor:
    """A square table of positions [1, side², C], interpolated where the map has another size → [1, h · w, C]."""
    side = round(table.shape[1] ** 0.5)
    if size_hw == (side, side):
        return table
    grid = table.transpose(1, 2).unflatten(2, (side, side))
    return F.interpolate(grid, size_hw, mode="bilinear", align_corners=False).flatten(2).transpose(1, 2)


def first_weights(module: nn.Module) -> None:
    """Draw the weights of linear layers from a normal distribution of deviation 0.02 cut at ±2, as transformers do."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
