"""The least network that classifies pictures and finds objects: three convolutions.

After the pattern of Gradient-Based Learning Applied to Document Recognition (LeCun et al., 1998), section II, with what
came later: ReLU (Nair and Hinton, 2010) and batch norm (Ioffe and Szegedy, 2015, arXiv 1502.03167).
"""

from collections.abc import Sequence

from torch import Tensor, nn

from detkit.backbones.base import Backbone
from detkit.backbones.common import declare

_CHANNELS = {2: 32, 4: 64, 8: 128}


class SimpleCNN(Backbone):
    """Three stages of a 3×3 convolution, batch norm, ReLU and 2×2 max-pooling, with 32, 64 and 128 channels.

    Maps: behind each pooling, at strides 2, 4 and 8.
    """

    def __init__(self, strides: Sequence[int] = (2, 4, 8)) -> None:
        super().__init__()
        declare(self, strides, _CHANNELS)
        self.stages = nn.ModuleList()
        channels_in = 3
        for stride, channels in _CHANNELS.items():
            if stride <= self.strides[-1]:
                self.stages.append(_stage(channels_in, channels))
                channels_in = channels

    def forward(self, images: Tensor) -> list[Tensor]:
        """[B, 3, H, W] → one map per wanted stride, finest first."""
        x, maps = images, []
        for stride, stage in zip(_CHANNELS, self.stages, strict=False):
            x = stage(x)
            if stride in self.strides:
                maps.append(x)
        return maps


def _stage(channels_in: int, channels_out: int) -> nn.Sequential:
    conv = nn.Conv2d(channels_in, channels_out, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
    return nn.Sequential(conv, nn.BatchNorm2d(channels_out), nn.ReLU(inplace=True), nn.MaxPool2d(2, ceil_mode=True))
