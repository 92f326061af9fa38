"""LeNet-5: Gradient-Based Learning Applied to Document Recognition (LeCun et al., 1998), section II.

Kept from the paper: all seven layers up to F6, subsampling with a coefficient and a bias for each map, the table of
which maps of S2 each map of C3 sees (table I), the squashing 1.7159 · tanh(⅔ a) behind every layer (appendix A), the
first weights (uniform in ± 2.4 / fan-in), grey pictures whose background is −0.1 and whose ink is 1.175, and so the
paper's 60,000 trainable parameters. Left out: the radial basis functions that compare F6 with drawn characters; a
classifier's linear layer stands in their place. Shapes: B pictures of H × W.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from detkit.backbones.base import Backbone
from detkit.backbones.common import cropped, declare, padded

TABLE = (
    "012", "123", "234", "345", "045", "015",
    "0123", "1234", "2345", "0345", "0145", "0125", "0134", "1245", "0235",
    "012345",
)  # fmt: skip
"""Table I: the maps of S2 that each of the 16 maps of C3 is connected to."""

_CHANNELS = {2: 6, 4: 16, 32: 84}
_GREY = (0.299, 0.587, 0.114)  # the luma of ITU-R BT.601

# What a map of convolutions without padding lacks to have H / stride cells: left, right, above, below.
_MARGINS = {2: (1, 1, 1, 1), 4: (1, 2, 1, 2), 32: (0, 0, 0, 0)}


class LeNet5(Backbone):
    """LeNet-5 up to F6. Maps: S2 at stride 2, S4 at stride 4, F6 at stride 32.

    A picture of 32 × 32 has one cell of F6, as in the paper. On a larger one C5 takes steps of eight, so that each cell
    of F6 sees its own 32 × 32 pixels and no others; sides are padded to multiples of 32. The convolutions pad nothing,
    S2 and S4 get a margin of zeros. Colours become grey.
    """

    mean = (0.1 / 1.275,) * 3  # black, the background, becomes −0.1 and white 1.175
    std = (1 / 1.275,) * 3

    grey: Tensor

    def __init__(self, strides: Sequence[int] = (2, 4, 32)) -> None:
        super().__init__()
        declare(self, strides, _CHANNELS)
        self.register_buffer("grey", torch.tensor(_GREY).view(3, 1, 1), persistent=False)
        c1, c5, f6 = nn.Conv2d(1, 6, 5), nn.Conv2d(16, 120, 5, stride=8), nn.Conv2d(120, 84, 1)
        for layer in (c1, c5, f6):
            _draw(layer.weight, layer.weight[0].numel())
            _draw(layer.bias, layer.weight[0].numel())
        stages = {
            2: nn.Sequential(c1, Squash(), Subsampling(6), Squash()),
            4: nn.Sequential(Sparse(TABLE), Squash(), Subsampling(16), Squash()),
            32: nn.Sequential(c5, Squash(), f6, Squash()),
        }
        self.stages = nn.ModuleList(stage for stride, stage in stages.items() if stride <= self.strides[-1])

    def forward(self, images: Tensor) -> list[Tensor]:
        """[B, 3, H, W] → one map per wanted stride, finest first."""
        x, maps = padded(F.conv2d(images, self.grey[None]), 32), []
        for stride, stage in zip(_CHANNELS, self.stages, strict=False):
            x = stage(x)
            if stride in self.strides:
                maps.append(cropped(F.pad(x, _MARGINS[stride]), images, stride))
        return maps


class Squash(nn.Module):
    """1.7159 · tanh(⅔ a), which is ±1 at ±1."""

    def forward(self, x: Tensor) -> Tensor:
        """Return what has the same shape."""
        return 1.7159 * (x * (2 / 3)).tanh_()


class Subsampling(nn.Module):
    """The sum of 2 × 2 cells, times a coefficient, plus a bias, of each map its own: S2 and S4."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels))
        self.bias = nn.Parameter(torch.empty(channels))
        _draw(self.weight, 4)
        _draw(self.bias, 4)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] → [B, C, H / 2, W / 2]."""
        sums = F.avg_pool2d(x, 2, divisor_override=1)
        return torch.addcmul(self.bias[:, None, None], sums, self.weight[:, None, None])


class Sparse(nn.Module):
    """A 5×5 convolution each of whose maps sees some of the maps before it, as the table says: C3.

    weight: one kernel for each connection [connections, 5, 5], in the order of the table.
    """

    places: Tensor

    def __init__(self, table: Sequence[str]) -> None:
        super().__init__()
        self.channels_out, self.channels_in = len(table), 1 + max(int(digit) for row in table for digit in row)
        places = [i * self.channels_in + int(digit) for i, row in enumerate(table) for digit in row]
        self.register_buffer("places", torch.tensor(places), persistent=False)
        self.weight = nn.Parameter(torch.empty(len(places), 5, 5))
        self.bias = nn.Parameter(torch.empty(len(table)))
        _draw(self.weight, torch.tensor([25.0 * len(row) for row in table for _ in row])[:, None, None])
        _draw(self.bias, torch.tensor([25.0 * len(row) for row in table]))

    def forward(self, x: Tensor) -> Tensor:
        """[B, 6, H, W] → [B, 16, H − 4, W − 4]."""
        kernels = self.weight.new_zeros(self.channels_out * self.channels_in, 5, 5)
        kernels = kernels.index_copy(0, self.places, self.weight)
        return F.conv2d(x, kernels.view(self.channels_out, self.channels_in, 5, 5), self.bias)


@torch.no_grad()
def _draw(parameter: Tensor | None, fan_in: float | Tensor) -> None:
    """Draw first weights evenly from ± 2.4 / fan-in."""
    if parameter is not None:
        parameter.uniform_(-2.4, 2.4).div_(fan_in)
