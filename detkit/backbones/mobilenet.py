"""MobileNetV3-Large (Howard et al., 2019, arXiv 1905.02244), table 1, built by torchvision.

timm's own of this name gives one map for each stride; torchvision's Faster R-CNN reads two of stride 32.
"""

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn
from torchvision.models.mobilenetv3 import mobilenet_v3_large

from detkit.backbones.base import Backbone

_LAST = {2: 1, 4: 3, 8: 6, 16: 12, 32: 16}
_FIRST_OF_32 = 13


class MobileNetV3Large(Backbone):
    """The maps of the last block at each of the strides; where 32 stands twice, also that of its first block."""

    mean = (0.485, 0.456, 0.406)
    std = (0.229, 0.224, 0.225)

    def __init__(self, strides: Sequence[int] = (8, 16, 32)) -> None:
        super().__init__()
        wanted = sorted(strides)
        unknown = set(wanted) - set(_LAST)
        if unknown:
            raise ValueError(f"no map of stride {min(unknown)}: this backbone has {', '.join(map(str, _LAST))}")
        self.outputs = [_LAST[stride] for stride in wanted]
        if wanted[-2:] == [32, 32]:
            self.outputs[-2] = _FIRST_OF_32
        if sorted(set(self.outputs)) != self.outputs:
            raise ValueError(f"one map of each stride, and two of 32, not of {', '.join(map(str, wanted))}")
        # The norms' ε is 1e-5, as in torchvision's detector; that of its classifier is 1e-3.
        blocks = mobilenet_v3_large(norm_layer=nn.BatchNorm2d).features[: self.outputs[-1] + 1]
        self.features = nn.ModuleList(blocks)
        self.strides = tuple(wanted)
        self.channels = tuple(blocks[i].out_channels for i in self.outputs)

    def forward(self, images: Tensor) -> list[Tensor]:
        """[B, 3, H, W] → one map per wanted stride, finest first."""
        x = images
        maps = []
        for i, block in enumerate(self.features):
            x = block(x)
            if i in self.outputs:
                maps.append(x)
        return maps

    def stages_from_picture(self) -> list[nn.ModuleList]:
        """The blocks up to the last one of each stride."""
        ends = [0, *(last + 1 for last in _LAST.values())]
        return [nn.ModuleList(self.features[a:b]) for a, b in pairwise(ends) if a < len(self.features)]
