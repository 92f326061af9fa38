"""Neighborhood Attention Transformer (Hassani, Walton, Li, Li and Shi, 2022, arXiv 2204.07143); sizes as in table 2.

Each cell attends to the 7 × 7 cells around it; at a border the window stays inside, so that it is always whole. The
parameters are named as in the released code (https://github.com/SHI-Labs/Neighborhood-Attention-Transformer), whose
files hold beside them only the `norm` and the `head` of a classifier. Shapes: B pictures, a map of h × w cells, C
channels, H heads of D channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import Any

import torch
from timm.layers.drop import DropPath
from timm.layers.mlp import Mlp
from torch import Tensor, nn
from torch.nn import functional as F

from detkit.backbones.base import Backbone
from detkit.backbones.common import declare, first_weights

try:
    _functional: Any = import_module("natten.functional")
except (ImportError, RuntimeError):  # natten raises the latter where it was built for a GPU that is not there
    _functional = None
NATTEN: Any = _functional if hasattr(_functional, "na2d_qk") else None  # since 0.20 its kernels know no bias

WINDOW = 7
_REACH = WINDOW // 2
_SEEN = 2 * WINDOW - 1  # what 7 cells in a row see together, and the distances between a cell and what it sees
_NEVER = -3e4  # a score whose exponential is 0 beside any other, and that fp16 holds; 0 · −∞ would be no number


class NAT(Backbone):
    """A convolutional stem and four levels of transformer blocks, at strides 4, 8, 16 and 32, each twice as wide.

    width: channels of the first level, whose heads have 32 each. depths: blocks of each level. expansion: of the
    perceptrons. layer_scale: first weight of what a block adds, None for none. drop_path: stochastic depth of the last
    block, falling to 0 at the first. Odd maps are halved to ⌈side / 2⌉. Maps are what the last block of a level gives;
    the authors' detector puts a layer norm behind each.
    """

    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

    def __init__(
        self,
        width: int,
        depths: Sequence[int],
        expansion: int,
        layer_scale: float | None,
        strides: Sequence[int],
        drop_path: float,
    ) -> None:
        super().__init__()
        declare(self, strides, {4 << i: width << i for i in range(4)})
        rates = torch.linspace(0, drop_path, sum(depths), device="cpu").split(list(depths))
        used = [stride for stride in (4, 8, 16, 32) if stride <= self.strides[-1]]
        self.patch_embed = Stem(width)
        self.levels = nn.ModuleList(
            Level(width << i, expansion, layer_scale, rates[i].tolist(), last=stride == used[-1])
            for i, stride in enumerate(used)
        )
        self.apply(first_weights)

    def forward(self, images: Tensor) -> list[Tensor]:
        """[B, 3, H, W] → one map per wanted stride, finest first."""
        x, maps = self.patch_embed(images), []
        for i, level in enumerate(self.levels):
            map_, x = level(x)
            if 4 << i in self.strides:
                maps.append(map_.permute(0, 3, 1, 2))
        return maps

    def stages_from_picture(self) -> list[nn.ModuleList]:
        """The levels; the stem belongs to the first."""
        return [nn.ModuleList([level] if i else [self.patch_embed, level]) for i, level in enumerate(self.levels)]


class Stem(nn.Module):
    """Two 3×3 convolutions of stride 2 and layer norm: [B, 3, H, W] → [B, ⌈H / 4⌉, ⌈W / 4⌉, C]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        first = nn.Conv2d(3, channels // 2, 3, stride=2, padding=1)
        self.proj = nn.Sequential(first, nn.Conv2d(channels // 2, channels, 3, stride=2, padding=1))
        self.norm = nn.LayerNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        """Return the embedded picture, channels last."""
        out: Tensor = self.norm(self.proj(x).permute(0, 2, 3, 1))
        return out


class Downsampler(nn.Module):
    """A 3×3 convolution of stride 2 to twice the channels, and layer norm: [B, h, w, C] → [B, ⌈h / 2⌉, ⌈w / 2⌉, 2C]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.reduction = nn.Conv2d(channels, 2 * channels, 3, stride=2, padding=1, bias=False)
        self.norm = nn.LayerNorm(2 * channels)

    def forward(self, x: Tensor) -> Tensor:
        """Return the smaller map."""
        out: Tensor = self.norm(self.reduction(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))
        return out


class Level(nn.Module):
    """Blocks at one stride, and what leads to the next."""

    def __init__(
        self, channels: int, expansion: int, layer_scale: float | None, rates: Sequence[float], last: bool
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(channels, expansion, layer_scale, rate) for rate in rates)
        self.downsample = None if last else Downsampler(channels)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """[B, h, w, C] → the map [B, h, w, C], and what the next level begins with; of the last the map again."""
        for block in self.blocks:
            x = block(x)
        return x, x if self.downsample is None else self.downsample(x)


class Block(nn.Module):
    """Neighbourhood attention and a perceptron, each normalised before, scaled and added: [B, h, w, C] → the same."""

    def __init__(self, channels: int, expansion: int, layer_scale: float | None, drop_path: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(channels)
        self.attn = NeighbourhoodAttention(channels)
        self.norm2 = nn.LayerNorm(channels)
        self.mlp = Mlp(channels, channels * expansion)
        self.drop_path = DropPath(drop_path)
        self.gamma1 = None if layer_scale is None else nn.Parameter(torch.full((channels,), layer_scale))
        self.gamma2 = None if layer_scale is None else nn.Parameter(torch.full((channels,), layer_scale))

    def forward(self, x: Tensor) -> Tensor:
        """Return x plus what attention and the perceptron add."""
        for norm, layer, scale in ((self.norm1, self.attn, self.gamma1), (self.norm2, self.mlp, self.gamma2)):
            added = layer(norm(x))
            x = x + self.drop_path(added if scale is None else scale * added)
        return x


class NeighbourhoodAttention(nn.Module):
    """Attention of each cell to the window around it, with a bias for each distance: [B, h, w, C] → the same.

    A map of fewer than seven cells is padded with zeros, as in the released code.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.heads = channels // 32
        self.qkv = nn.Linear(channels, 3 * channels)
        self.rpb = nn.Parameter(torch.empty(self.heads, _SEEN, _SEEN))
        self.proj = nn.Linear(channels, channels)
        nn.init.trunc_normal_(self.rpb, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        """Return what each cell gathers, projected."""
        height, width = x.shape[1:3]
        if min(height, width) < WINDOW:
            x = F.pad(x, (0, 0, 0, max(0, WINDOW - width), 0, max(0, WINDOW - height)))
        q, k, v = self.qkv(x).unflatten(3, (3, self.heads, -1)).unbind(3)
        by_natten = NATTEN is not None and x.is_cuda and not torch.compiler.is_compiling()
        attend = attend_by_natten if by_natten else attend_to_neighbours
        out: Tensor = self.proj(attend(q, k, v, self.rpb).flatten(3))
        return out[:, :height, :width]


def attend_to_neighbours(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    """Attend from each cell to the 7 × 7 cells around it: q, k, v [B, h, w, H, D] → [B, h, w, H, D], h and w from 7.

    bias: what is added to a score, by head and distance [H, 13, 13]. Cells go in tiles of 7 × 7, which see 13 × 13
    together, and all tiles go through one attention with a mask. So keys and values are copied 169 / 49 ≈ 3.4 times,
    not 49 times as by unfolding, and the mask has 169 numbers for each cell and head, whatever B is.
    """
    heads = q.shape[3]
    (up, down, rows), (left, right, columns) = _tiles(q.shape[1], bias), _tiles(q.shape[2], bias)
    tiles = len(rows), len(columns)

    q = F.pad(q, (0, 0, 0, 0, left, right, up, down))
    q = q.unflatten(2, (tiles[1], WINDOW)).unflatten(1, (tiles[0], WINDOW))  # [B, rows, 7, columns, 7, H, D]
    q = q.permute(0, 1, 3, 5, 2, 4, 6).flatten(4, 5).flatten(1, 3)  # [B, tiles · H, 49, D]

    reach = left + _REACH, right + _REACH + 1, up + _REACH, down + _REACH + 1
    seen = F.pad(torch.stack([k, v], 3), (0, 0, 0, 0, 0, 0, *reach))
    seen = seen.unflatten(2, (tiles[1] + 1, WINDOW)).unflatten(1, (tiles[0] + 1, WINDOW))
    seen = seen.permute(5, 0, 1, 3, 6, 2, 4, 7)  # [2, B, rows + 1, columns + 1, H, 7, 7, D]
    k, v = _with_next(_with_next(seen, 3, 6), 2, 5).flatten(5, 6).flatten(2, 4)  # each [B, tiles · H, 169, D]

    table = F.pad(bias, (0, 1, 0, 1), value=_NEVER)
    mask = rows.flatten(0, 2) @ table @ columns.flatten(0, 2).T  # a product, whose gradient is one too
    mask = mask.unflatten(2, (tiles[1], WINDOW, _SEEN)).unflatten(1, (tiles[0], WINDOW, _SEEN))
    mask = mask.permute(1, 4, 0, 2, 5, 3, 6).flatten(5, 6).flatten(3, 4).flatten(0, 2)  # [tiles · H, 49, 169]

    x = F.scaled_dot_product_attention(q, k, v, mask[None])
    x = x.unflatten(2, (WINDOW, WINDOW)).unflatten(1, (*tiles, heads)).permute(0, 1, 4, 2, 5, 3, 6)
    out: Tensor = x.flatten(3, 4).flatten(1, 2)  # [B, h, w, H, D] and what pads the tiles
    return out[:, up : out.shape[1] - down, left : out.shape[2] - right]


def attend_by_natten(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    """Return what `attend_to_neighbours` does, by the kernels of natten (https://natten.org)."""
    q, k, v = (x.permute(0, 3, 1, 2, 4).contiguous() for x in (q * q.shape[-1] ** -0.5, k, v))
    weights = NATTEN.na2d_qk(q, k, WINDOW, rpb=bias).softmax(-1)
    out: Tensor = NATTEN.na2d_av(weights, v, WINDOW)
    return out.permute(0, 2, 3, 1, 4)


def _with_next(x: Tensor, tile: int, cell: int) -> Tensor:
    """Give each tile along an axis but the last its 13 cells, its own 7 and 6 of the next; tile, cell: their axes."""
    count = x.shape[tile] - 1
    return torch.cat([x.narrow(tile, 0, count), x.narrow(tile, 1, count).narrow(cell, 0, _SEEN - WINDOW)], cell)


def _tiles(size: int, like: Tensor) -> tuple[int, int, Tensor]:
    """Lay tiles of 7 over an axis → padding before, padding behind, choice among the biases [tiles, 7, 13, 14].

    It is 1 at one of 0 … 12 where cell i of a tile sees cell j of the 13 around the tile, and at 13 where not. The
    tiles are shifted so that the last has at least 4 cells; then the whole window of each of its cells lies within its
    13.
    """
    rest = size % WINDOW
    before = max(0, WINDOW - _REACH - rest) if rest else 0
    tiles = -(-(size + before) // WINDOW)
    first = torch.arange(tiles, device=like.device)[:, None, None] * WINDOW - before
    cell = (first + torch.arange(WINDOW, device=like.device)[:, None]).clamp(
        0, size - 1
    )  # padding sees what the border does
    seen = first + torch.arange(_SEEN, device=like.device) - _REACH
    start = (cell - _REACH).clamp(0, size - WINDOW)
    index = torch.where((seen >= start) & (seen < start + WINDOW), seen - cell + WINDOW - 1, _SEEN)
    choice = (index[..., None] == torch.arange(_SEEN + 1, device=like.device)).to(like.dtype)
    return before, tiles * WINDOW - before - size, choice


class NATMini(NAT):
    """NAT-Mini: 20 million parameters, 2.7 GFLOPs, 81.8 % top-1 in the paper."""

    def __init__(self, strides: Sequence[int] = (4, 8, 16, 32), drop_path: float = 0) -> None:
        super().__init__(64, (3, 4, 6, 5), 3, None, strides, drop_path)


class NATTiny(NAT):
    """NAT-Tiny: 28 million parameters, 4.3 GFLOPs, 83.2 % top-1 in the paper."""

    def __init__(self, strides: Sequence[int] = (4, 8, 16, 32), drop_path: float = 0) -> None:
        super().__init__(64, (3, 4, 18, 5), 3, None, strides, drop_path)


class NATSmall(NAT):
    """NAT-Small: 51 million parameters, 7.8 GFLOPs, 83.7 % top-1 in the paper."""

    def __init__(self, strides: Sequence[int] = (4, 8, 16, 32), drop_path: float = 0) -> None:
        super().__init__(96, (3, 4, 18, 5), 2, 1e-5, strides, drop_path)


class NATBase(NAT):
    """NAT-Base: 90 million parameters, 13.7 GFLOPs, 84.3 % top-1 in the paper."""

    def __init__(self, strides: Sequence[int] = (4, 8, 16, 32), drop_path: float = 0) -> None:
        super().__init__(128, (3, 4, 18, 5), 2, 1e-5, strides, drop_path)
