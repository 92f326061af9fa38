"""Layers that the networks of the Darknet family are made of."""

from collections.abc import Callable

from torch import Tensor, nn
from torch.nn import functional as F

from detkit.backbones.norm import DarknetNorm

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "leaky": lambda: nn.LeakyReLU(0.1, inplace=True),
    "linear": nn.Identity,
    "logistic": nn.Sigmoid,
    "mish": lambda: nn.Mish(inplace=True),
    "relu": lambda: nn.ReLU(inplace=True),
    "relu6": lambda: nn.ReLU6(inplace=True),
    "swish": lambda: nn.SiLU(inplace=True),
}


class ConvUnit(nn.Sequential):
    """Convolution that keeps the size but for its stride, batch norm, activation: [B, C, H, W] → [B, C', H', W']."""

    conv: nn.Conv2d
    norm: DarknetNorm

    def __init__(
        self, channels_in: int, channels_out: int, kernel: int, stride: int = 1, activation: str = "leaky"
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels_in, channels_out, kernel, stride, kernel // 2, bias=False)
        self.norm = DarknetNorm(channels_out)
        self.activation = ACTIVATIONS[activation]()
        nn.init.kaiming_normal_(self.conv.weight, a=0.1)


class SamePool(nn.Module):
    """Max-pooling of one pixel's stride that keeps the size by padding right and below, as Darknet's [maxpool] does."""

    def __init__(self, kernel: int) -> None:
        super().__init__()
        self.kernel = kernel

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] → [B, C, H, W]."""
        near, far = (self.kernel - 1) // 2, self.kernel // 2
        if near != far:
            x = F.pad(x, (0, 1, 0, 1), value=float("-inf"))
        return F.max_pool2d(x, self.kernel, 1, near)
