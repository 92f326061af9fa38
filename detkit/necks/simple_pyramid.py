"""Simple feature pyramid: maps of several strides from the one map of a plain transformer.

Exploring Plain Vision Transformer Backbones for Object Detection (Li, Mao, Girshick and He, 2022, arXiv 2203.16527),
section 3 and appendix A.2. Shapes: B pictures, C channels, h × w cells of the map that goes in, at stride s.
"""

from collections.abc import Sequence

from timm.layers.norm import LayerNorm2d
from torch import Tensor, nn


class SimpleFeaturePyramid(nn.Module):
    """Maps of all strides t made from one of stride s: [B, C, h, w] → [B, channels_out, h·s/t, w·s/t] each.

    A finer map comes by 2×2 deconvolutions that halve the channels, a coarser one by max-pooling; then each has a 1×1
    and a 3×3 convolution. Raises ValueError where a stride is not stride_in times or divided by a power of two.
    """

    def __init__(self, channels_in: int, stride_in: int, strides: Sequence[int], channels_out: int = 256) -> None:
        super().__init__()
        self.strides = tuple(strides)
        self.channels = (channels_out,) * len(self.strides)
        self.levels = nn.ModuleList(_level(channels_in, stride_in, stride, channels_out) for stride in self.strides)

    def forward(self, x: Tensor) -> list[Tensor]:
        """[B, C, h, w] → one map per stride, in the order of the strides."""
        return [level(x) for level in self.levels]


def _level(channels: int, stride_in: int, stride: int, channels_out: int) -> nn.Sequential:
    finer, coarser = max(stride_in // stride, 1), max(stride // stride_in, 1)
    if stride_in * coarser != stride * finer or (finer * coarser).bit_count() != 1:
        raise ValueError(f"no map of stride {stride} from one of stride {stride_in}: their ratio is no power of two")
    layers: list[nn.Module] = []
    while finer > 1:
        if layers:
            layers += [LayerNorm2d(channels), nn.GELU()]
        layers.append(nn.ConvTranspose2d(channels, channels // 2, 2, 2))
        channels, finer = channels // 2, finer // 2
    if coarser > 1:
        layers.append(nn.MaxPool2d(coarser))
    return nn.Sequential(
        *layers,
        nn.Conv2d(channels, channels_out, 1, bias=False),
        LayerNorm2d(channels_out),
        nn.Conv2d(channels_out, channels_out, 3, padding=1, bias=False),
        LayerNorm2d(channels_out),
    )
