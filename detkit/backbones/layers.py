"""Layers that the networks of the Darknet family are made of."""

import math
from collections.abc import Callable

import torch
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


class Local(nn.Module):
    """A convolution whose weights differ at each of its L places: weight [L, C', C·k·k], bias [C'·L].

    shape: of what it returns, (C', H', W') with L = H'·W'. Darknet's [local].
    """

    def __init__(self, shape: tuple[int, int, int], channels: int, kernel: int, stride: int, padding: int) -> None:
        super().__init__()
        places = shape[1] * shape[2]
        self.shape, self.kernel, self.stride, self.padding = shape, kernel, stride, padding
        fan_in = channels * kernel * kernel
        self.weight = nn.Parameter(torch.randn(places, shape[0], fan_in) * math.sqrt(2 / fan_in))
        self.bias = nn.Parameter(torch.zeros(math.prod(shape)))  # a vector, so that it has no weight decay

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] → [B, C', H', W']."""
        patches = F.unfold(x, self.kernel, padding=self.padding, stride=self.stride)
        out = torch.einsum("lok,bkl->bol", self.weight, patches)
        return out.reshape(len(x), *self.shape) + self.bias.view(self.shape)


class Reorg(nn.Module):
    """Darknet's [reorg], no pixel-unshuffle: its input counts as a buffer [C/s², H, s, W, s] (reorg_cpu in blas.c)."""

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] → [B, C·s², H/s, W/s]."""
        s, (b, c, h, w) = self.stride, x.shape
        x = x.reshape(b, c // s**2, h, s, w, s).permute(0, 3, 5, 1, 2, 4)
        return x.reshape(b, c * s**2, h // s, w // s)
