"""Pyramid Vision Transformer: A Versatile Backbone for Dense Prediction without Convolutions.

Wang, Xie, Li, Fan, Song, Liang, Lu, Luo and Shao, 2021, arXiv 2102.12122; sizes as in table 1. Names of parameters are
those of the released code (https://github.com/whai362/PVT), whose files hold beside them only the `norm` and the `head`
of a classifier. Shapes: B pictures of H × W, N cells of a map of h × w, C channels.
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

_CHANNELS = {4: 64, 8: 128, 16: 320, 32: 512}
_HEADS = (1, 2, 5, 8)
_EXPANSIONS = (8, 8, 4, 4)
_REDUCTIONS = (8, 4, 2, 1)
_SIZE = 224  # of the pictures that the tables of positions are made for


class PVT(Backbone):
    """Four stages, each a patch embedding, positions and transformer blocks, at strides 4, 8, 16 and 32.

    depths: blocks of each stage. drop_path: stochastic depth of the last block, falling to 0 at the first. In the last
    stage a class token takes part, which a classifier reads with `tokens`. Pictures are padded right and below to
    multiples of 32, positions interpolated.
    """

    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

    def __init__(self, depths: Sequence[int], strides: Sequence[int] = (4, 8, 16, 32), drop_path: float = 0) -> None:
        super().__init__()
        declare(self, strides, _CHANNELS)
        rates = iter(torch.linspace(0, drop_path, sum(depths), device="cpu").tolist())
        channels_in = 3
        for i, (stride, channels) in enumerate(_CHANNELS.items()):
            if stride > self.strides[-1]:
                break
            cells = (_SIZE // stride) ** 2 + (stride == 32)  # one more for the class token
            blocks = [Block(channels, _HEADS[i], _EXPANSIONS[i], _REDUCTIONS[i], next(rates)) for _ in range(depths[i])]
            self.add_module(f"patch_embed{i + 1}", PatchEmbedding(channels_in, channels, 4 if i == 0 else 2))
            self.register_parameter(f"pos_embed{i + 1}", nn.Parameter(torch.empty(1, cells, channels)))
            self.add_module(f"block{i + 1}", nn.ModuleList(blocks))
            nn.init.trunc_normal_(self.get_parameter(f"pos_embed{i + 1}"), std=0.02)
            channels_in = channels
        if self.class_tokens:
            self.cls_token = nn.Parameter(torch.empty(1, 1, channels_in))
            nn.init.trunc_normal_(self.cls_token, std=0.02)
        self.apply(first_weights)

    @property
    def class_tokens(self) -> int:
        """How many tokens stand for the picture: 1 where there is the last stage."""
        return int(self.strides[-1] == 32)

    def forward(self, images: Tensor) -> list[Tensor]:
        """[B, 3, H, W] → one map per wanted stride, finest first."""
        maps, _ = self._run(images)
        return [cropped(maps[stride], images, stride) for stride in self.strides]

    def tokens(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] → the class token behind the last block [B, 1, 512]."""
        return self._run(images)[1]

    def stages_from_picture(self) -> list[nn.ModuleList]:
        """The stages, each with its positions; the class token belongs to the last."""
        stages = [
            nn.ModuleList(
                [
                    self.get_submodule(f"patch_embed{i}"),
                    nn.ParameterList([self.get_parameter(f"pos_embed{i}")]),
                    self.get_submodule(f"block{i}"),
                ]
            )
            for i in range(1, 5)
            if hasattr(self, f"block{i}")
        ]
        if self.class_tokens:
            stages[-1].append(nn.ParameterList([self.cls_token]))
        return stages

    def _run(self, images: Tensor) -> tuple[dict[int, Tensor], Tensor]:
        """Return the maps by stride, and the tokens of the last stage that are no cells."""
        x, maps, tokens = padded(images, 32), {}, images.new_empty(len(images), 0, 0)
        for i, stride in enumerate(stride for stride in _CHANNELS if stride <= self.strides[-1]):
            x = self.get_submodule(f"patch_embed{i + 1}")(x)
            b, _, h, w = x.shape
            x, table = x.flatten(2).transpose(1, 2), self.get_parameter(f"pos_embed{i + 1}")
            extra = int(stride == 32)
            x = x + positions(table[:, extra:], (h, w))
            if extra:
                # The authors' detector leaves the token out; here one network serves both, and it is little to compute.
                x = torch.cat([(self.cls_token + table[:, :1]).expand(b, -1, -1), x], 1)
            for block in cast("nn.ModuleList", self.get_submodule(f"block{i + 1}")):
                x = block(x, (h, w))
            tokens, x = x[:, :extra], x[:, extra:].transpose(1, 2).unflatten(2, (h, w))
            maps[stride] = x
        return maps, tokens


class PatchEmbedding(nn.Module):
    """Patches of p × p cells, projected and normalised: [B, C, H, W] → [B, C', H / p, W / p]."""

    def __init__(self, channels_in: int, channels_out: int, patch: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels_in, channels_out, patch, stride=patch)
        self.norm = nn.LayerNorm(channels_out)

    def forward(self, x: Tensor) -> Tensor:
        """Return the embedded patches."""
        out: Tensor = self.norm(self.proj(x).permute(0, 2, 3, 1))
        return out.permute(0, 3, 1, 2)


class Block(nn.Module):
    """Attention and a perceptron of one hidden layer, each normalised before and added to what goes in."""

    def __init__(self, channels: int, heads: int, expansion: int, reduction: int, drop_path: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(channels, eps=1e-6)
        self.attn = SpatialReductionAttention(channels, heads, reduction)
        self.norm2 = nn.LayerNorm(channels, eps=1e-6)
        self.mlp = Mlp(channels, channels * expansion)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, size_hw: tuple[int, int]) -> Tensor:
        """[B, N, C] → [B, N, C]."""
        x = x + self.drop_path(self.attn(self.norm1(x), size_hw))
        out: Tensor = x + self.drop_path(self.mlp(self.norm2(x)))
        return out


class SpatialReductionAttention(nn.Module):
    """Attention whose keys and values come from a map that is R times smaller on each side (section 3.3).

    One R × R convolution of stride R and layer norm make the map small. Cost: N² / R² instead of N².
    """

    def __init__(self, channels: int, heads: int, reduction: int) -> None:
        super().__init__()
        self.heads, self.reduction = heads, reduction
        self.q = nn.Linear(channels, channels)
        self.kv = nn.Linear(channels, 2 * channels)
        self.proj = nn.Linear(channels, channels)
        if reduction > 1:
            self.sr = nn.Conv2d(channels, channels, reduction, stride=reduction)
            self.norm = nn.LayerNorm(channels)

    def forward(self, x: Tensor, size_hw: tuple[int, int]) -> Tensor:
        """[B, N, C] of a map of size_hw → [B, N, C]; where nothing is reduced, N may hold more than the map's cells."""
        source = x
        if self.reduction > 1:
            small = self.sr(x.transpose(1, 2).unflatten(2, size_hw))
            source = self.norm(small.flatten(2).transpose(1, 2))
        q = self.q(x).unflatten(2, (self.heads, -1)).transpose(1, 2)
        k, v = self.kv(source).unflatten(2, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v)
        out: Tensor = self.proj(mixed.transpose(1, 2).flatten(2))
        return out


class PVTTiny(PVT):
    """PVT-Tiny, two blocks a stage: 13.2 million parameters, 75.1 % top-1 in the paper."""

    def __init__(self, strides: Sequence[int] = (4, 8, 16, 32), drop_path: float = 0) -> None:
        super().__init__((2, 2, 2, 2), strides, drop_path)


class PVTSmall(PVT):
    """PVT-Small, 3, 4, 6 and 3 blocks: 24.5 million parameters, 79.8 % top-1 in the paper."""

    def __init__(self, strides: Sequence[int] = (4, 8, 16, 32), drop_path: float = 0) -> None:
        super().__init__((3, 4, 6, 3), strides, drop_path)


class PVTMedium(PVT):
    """PVT-Medium, 3, 4, 18 and 3 blocks: 44.2 million parameters, 81.2 % top-1 in the paper."""

    def __init__(self, strides: Sequence[int] = (4, 8, 16, 32), drop_path: float = 0) -> None:
        super().__init__((3, 4, 18, 3), strides, drop_path)


class PVTLarge(PVT):
    """PVT-Large, 3, 8, 27 and 3 blocks: 61.4 million parameters, 81.7 % top-1 in the paper."""

    def __init__(self, strides: Sequence[int] = (4, 8, 16, 32), drop_path: float = 0) -> None:
        super().__init__((3, 8, 27, 3), strides, drop_path)
