"""Feature Pyramid Networks for Object Detection (Lin et al., 2017, arXiv 1612.03144), section 3.

Shapes: maps [B, channels[i], h, w] of a backbone, finest first, to maps [B, C, h, w] of the same sizes.
"""

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F


class FPN(nn.Module):
    """Each map by a 1×1 convolution to C channels, plus the coarser one enlarged; a 3×3 convolution makes the output.

    norm: batch norm behind every convolution; the paper has none.
    """

    def __init__(self, channels: Sequence[int], channels_out: int = 256, norm: bool = False) -> None:
        super().__init__()
        self.channels = (channels_out,) * len(channels)
        self.lateral = nn.ModuleList(_unit(c, channels_out, 1, norm) for c in channels)
        self.output = nn.ModuleList(_unit(channels_out, channels_out, 3, norm) for _ in channels)

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        """[B, channels[i], h, w] finest first → [B, C, h, w] finest first."""
        sums: list[Tensor] = []
        for lateral, x in zip(reversed(self.lateral), reversed(maps), strict=True):
            own = lateral(x)
            sums.append(own + F.interpolate(sums[-1], size=own.shape[-2:], mode="nearest") if sums else own)
        return [output(x) for output, x in zip(self.output, reversed(sums), strict=True)]


def pooled_level(x: Tensor) -> Tensor:
    """Every second row and column of the coarsest map, for larger anchors: [B, C, h, w] → [B, C, ⌈h/2⌉, ⌈w/2⌉].

    Footnote 1 of the paper: it serves the region proposal network only.
    """
    return F.max_pool2d(x, 1, 2)


def _unit(channels_in: int, channels_out: int, kernel: int, norm: bool) -> nn.Sequential:
    conv = nn.Conv2d(channels_in, channels_out, kernel, padding=kernel // 2, bias=not norm)
    nn.init.kaiming_uniform_(conv.weight, a=1)
    if norm:
        return nn.Sequential(conv, nn.BatchNorm2d(channels_out))
    assert conv.bias is not None
    nn.init.zeros_(conv.bias)
    return nn.Sequential(conv)
