"""PSViT: Better Vision Transformer via Token Pooling and Attention Sharing (Chen et al., 2021, arXiv 2108.03428).

From the paper: a vision transformer has redundant tokens and redundant attention maps. So token pooling makes the
tokens fewer from stage to stage, either in a row (1D) or as a map (2D), and neighbouring layers share one attention
map. How many tokens each layer has, and which layers share, is searched for. The architectures that this search found
are not reproduced here. What was chosen in their place: three stages with two poolings; every second layer takes the
attention map of the one before; in 1D, DeiT's patches, widths and heads, a class token, and as many layers as make up
DeiT's cost; in 2D, patches of 8 × 8, no class token, and a width that doubles where the map is halved; each pooling is
a convolution over three tokens, or 3 × 3, then max-pooling. So no parameters or accuracies of the paper hold for them.

A shared map is shared by its queries and keys: attention goes through one kernel that never holds the map, so a layer
that shares has no weights for queries and keys, but compares them again. Shapes: B pictures of H × W, N tokens of C
channels, heads of D channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from timm.layers.drop import DropPath
from timm.layers.mlp import Mlp
from torch import Tensor, nn
from torch.nn import functional as F

from detkit.backbones.base import Backbone
from detkit.backbones.common import cropped, declare, first_weights, padded, positions
from detkit.necks.simple_pyramid import SimpleFeaturePyramid

# The layers of each stage: A has an attention map of its own, S shares that of the layer before.
LAYERS_1D = ("ASASASAS", "ASASASAS", "ASAS")
LAYERS_2D = ("AS", "ASAS", "ASAS")
_SIZE = 224  # of the pictures that the tables of positions are made for


class PSViT1D(Backbone):
    """Patches of 16 × 16 pixels in a row behind a class token, pooled to a half twice. Maps: at strides 16 and 32.

    width: channels, in heads of 64. The first pooling takes the tokens row by row and halves the rows, the second takes
    them column by column and halves the columns; so they end as a map of stride 32. Maps of other strides come from it
    by a simple feature pyramid. Pictures are padded right and below to multiples of 32, positions interpolated.
    drop_path: stochastic depth of the last layer, falling to 0 at the first.
    """

    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

    def __init__(self, width: int, strides: Sequence[int], drop_path: float) -> None:
        super().__init__()
        self.pyramid: SimpleFeaturePyramid | None = None
        if set(strides) <= {16, 32}:
            declare(self, strides, {16: width, 32: width})
        else:
            self.pyramid = SimpleFeaturePyramid(width, 32, sorted(strides))
            self.strides, self.channels = self.pyramid.strides, self.pyramid.channels
        rates = _rates(LAYERS_1D, drop_path)
        self.patch_embed = nn.Conv2d(3, width, 16, stride=16)
        self.pos_embed = nn.Parameter(torch.empty(1, (_SIZE // 16) ** 2 + 1, width))
        self.cls_token = nn.Parameter(torch.empty(1, 1, width))
        self.stages = nn.ModuleList(
            Stage(layers, width, width // 64, rates[i], Pool1D(width) if i else None)
            for i, layers in enumerate(LAYERS_1D[: 3 if self.class_tokens else 1])
        )
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        nn.init.trunc_normal_(self.cls_token, std=0.02)
        self.apply(first_weights)

    @property
    def class_tokens(self) -> int:
        """How many tokens stand for the picture: 1 where there is the last stage."""
        return int(self.strides != (16,))

    def forward(self, images: Tensor) -> list[Tensor]:
        """[B, 3, H, W] → one map per stride, finest first."""
        maps, _ = self._run(images)
        levels = [maps[stride] for stride in self.strides] if self.pyramid is None else self.pyramid(maps[32])
        return [cropped(x, images, stride) for x, stride in zip(levels, self.strides, strict=True)]

    def tokens(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] → the class token behind the last layer [B, 1, C]."""
        return self._run(images)[1]

    def _run(self, images: Tensor) -> tuple[dict[int, Tensor], Tensor]:
        """Return the maps by stride, and the class token behind them."""
        x = self.patch_embed(padded(images, 32))
        b, _, h, w = x.shape
        x = x.flatten(2).transpose(1, 2) + positions(self.pos_embed[:, 1:], (h, w))
        token = (self.cls_token + self.pos_embed[:, :1]).expand(b, -1, -1)
        first, *others = cast("list[Stage]", list(self.stages))
        token, x = first(torch.cat([token, x], 1)).split((1, h * w), 1)
        maps = {16: x.unflatten(1, (h, w)).permute(0, 3, 1, 2)}
        for stage in others:  # each halves one axis and turns the map around, so that the next halves the other
            x, (h, w) = cast("Pool1D", stage.pool)(x), (w // 2, h)
            x = x.unflatten(1, (w, h)).transpose(1, 2).flatten(1, 2)
            token, x = stage(torch.cat([token, x], 1)).split((1, h * w), 1)
        if others:
            maps[32] = x.unflatten(1, (h, w)).permute(0, 3, 1, 2)
        return maps, token


class PSViT2D(Backbone):
    """Patches of 8 × 8 pixels in a map, pooled to a half on both sides twice. Maps: at strides 8, 16 and 32.

    width: channels of the first stage, twice as many in each of the next, in heads of 32. Pictures are padded right and
    below to multiples of 32, positions interpolated. drop_path: as in 1D.
    """

    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

    def __init__(self, width: int, strides: Sequence[int], drop_path: float) -> None:
        super().__init__()
        declare(self, strides, {8 << i: width << i for i in range(3)})
        rates = _rates(LAYERS_2D, drop_path)
        self.patch_embed = nn.Conv2d(3, width, 8, stride=8)
        self.pos_embed = nn.Parameter(torch.empty(1, (_SIZE // 8) ** 2, width))
        self.stages = nn.ModuleList(
            Stage(layers, width << i, (width << i) // 32, rates[i], Pool2D(width << i >> 1) if i else None)
            for i, layers in enumerate(LAYERS_2D)
            if 8 << i <= self.strides[-1]
        )
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        self.apply(first_weights)

    def forward(self, images: Tensor) -> list[Tensor]:
        """[B, 3, H, W] → one map per wanted stride, finest first."""
        x, maps = self.patch_embed(padded(images, 32)), []
        for i, stage in enumerate(cast("list[Stage]", list(self.stages))):
            x = x if stage.pool is None else stage.pool(x)
            size = x.shape[2:]
            tokens = x.flatten(2).transpose(1, 2)
            if i == 0:
                tokens = tokens + positions(self.pos_embed, (size[0], size[1]))
            x = stage(tokens).transpose(1, 2).unflatten(2, size)
            if 8 << i in self.strides:
                maps.append(cropped(x, images, 8 << i))
        return maps


class Stage(nn.Module):
    """Layers over the same tokens, [B, N, C] → [B, N, C], and the pooling before them, which the network calls."""

    def __init__(
        self, layers: str, channels: int, heads: int, rates: Sequence[float], pool: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.pool = pool
        self.layers = nn.ModuleList(
            Layer(channels, heads, kind == "S", rate) for kind, rate in zip(layers, rates, strict=True)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Run the layers, each knowing the queries and keys of the one before."""
        compared: Tensor | None = None
        for layer in self.layers:
            x, compared = layer(x, compared)
        return x


class Layer(nn.Module):
    """Attention and a perceptron of one hidden layer, each normalised before and added to what goes in."""

    def __init__(self, channels: int, heads: int, shares: bool, drop_path: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(channels, eps=1e-6)
        self.attn = SharedAttention(channels, heads, shares)
        self.norm2 = nn.LayerNorm(channels, eps=1e-6)
        self.mlp = Mlp(channels, 4 * channels)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, compared: Tensor | None) -> tuple[Tensor, Tensor]:
        """[B, N, C] → [B, N, C], and the queries and keys that were compared."""
        mixed, compared = self.attn(self.norm1(x), compared)
        x = x + self.drop_path(mixed)
        return x + self.drop_path(self.mlp(self.norm2(x))), cast("Tensor", compared)


class SharedAttention(nn.Module):
    """Attention with queries and keys of its own, or with those of the layer before, and values of its own."""

    def __init__(self, channels: int, heads: int, shares: bool) -> None:
        super().__init__()
        self.heads = heads
        self.qk = None if shares else nn.Linear(channels, 2 * channels)
        self.v = nn.Linear(channels, channels)
        self.proj = nn.Linear(channels, channels)

    def forward(self, x: Tensor, compared: Tensor | None) -> tuple[Tensor, Tensor]:
        """[B, N, C] and what the layer before compared → [B, N, C] and queries and keys [2, B, heads, N, D]."""
        if self.qk is not None:
            compared = self.qk(x).unflatten(2, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        assert compared is not None  # the first layer of a stage has its own
        v = self.v(x).unflatten(2, (self.heads, -1)).transpose(1, 2)
        mixed = F.scaled_dot_product_attention(compared[0], compared[1], v)
        return self.proj(mixed.transpose(1, 2).flatten(2)), compared


class Pool1D(nn.Module):
    """A convolution over three tokens in a row, and of two neighbours the larger: [B, N, C] → [B, N / 2, C]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Return half as many tokens."""
        return F.max_pool1d(self.conv(x.transpose(1, 2)), 2).transpose(1, 2)


class Pool2D(nn.Module):
    """A 3×3 convolution to twice the channels, and of 2 × 2 the largest: [B, C, h, w] → [B, 2C, h / 2, w / 2]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, 2 * channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Return a quarter of the tokens."""
        return F.max_pool2d(self.conv(x), 2)


def _rates(stages: Sequence[str], drop_path: float) -> list[list[float]]:
    """Return each layer's rate of stochastic depth, by stage."""
    lengths = [len(layers) for layers in stages]
    return [part.tolist() for part in torch.linspace(0, drop_path, sum(lengths), device="cpu").split(lengths)]


class PSViT1DTiny(PSViT1D):
    """PSViT in 1D, of the width of DeiT-Ti."""

    def __init__(self, strides: Sequence[int] = (16, 32), drop_path: float = 0) -> None:
        super().__init__(192, strides, drop_path)


class PSViT1DSmall(PSViT1D):
    """PSViT in 1D, of the width of DeiT-S."""

    def __init__(self, strides: Sequence[int] = (16, 32), drop_path: float = 0) -> None:
        super().__init__(384, strides, drop_path)


class PSViT1DBase(PSViT1D):
    """PSViT in 1D, of the width of DeiT-B."""

    def __init__(self, strides: Sequence[int] = (16, 32), drop_path: float = 0) -> None:
        super().__init__(768, strides, drop_path)


class PSViT2DTiny(PSViT2D):
    """PSViT in 2D, of 96, 192 and 384 channels."""

    def __init__(self, strides: Sequence[int] = (8, 16, 32), drop_path: float = 0) -> None:
        super().__init__(96, strides, drop_path)


class PSViT2DSmall(PSViT2D):
    """PSViT in 2D, of 192, 384 and 768 channels."""

    def __init__(self, strides: Sequence[int] = (8, 16, 32), drop_path: float = 0) -> None:
        super().__init__(192, strides, drop_path)


class PSViT2DBase(PSViT2D):
    """PSViT in 2D, of 384, 768 and 1536 channels."""

    def __init__(self, strides: Sequence[int] = (8, 16, 32), drop_path: float = 0) -> None:
        super().__init__(384, strides, drop_path)
