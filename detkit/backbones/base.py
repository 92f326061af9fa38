"""What every backbone is: pictures in, a pyramid of feature maps out."""

from abc import ABC, abstractmethod

from torch import Tensor, nn


class Backbone(nn.Module, ABC):
    """A network that turns normalised pictures [B, 3, H, W] into feature maps, finest first.

    channels, strides: of each map. mean, std: of the RGB values in 0 … 1 that the network was made for; the detector
    normalises with them.
    """

    channels: tuple[int, ...]
    strides: tuple[int, ...]
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)

    @abstractmethod
    def forward(self, images: Tensor) -> list[Tensor]:
        """Return one map [B, channels[i], H / strides[i], W / strides[i]] per level."""
