"""Batch norm as Darknet computes it with what was learned."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class DarknetNorm(nn.BatchNorm2d):
    """Batch norm that divides by sqrt(variance) + 1e-6 instead of sqrt(variance + ε), as normalize_cpu in blas.c.

    The statistics are kept as a .weights file holds them, so that they can be written back to the bit.
    While training they follow a batch by PyTorch's .1, not by the .01 of forward_batchnorm_layer in batchnorm_layer.c.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__(channels, eps=1e-12)

    @property
    def variance(self) -> Tensor:
        """The variance with which the usual formula gives Darknet's result: (sqrt(v) + 1e-6)² − ε."""
        return self.running_var + 2e-6 * self.running_var.sqrt()

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] → [B, C, H, W]; while training the usual formula serves."""
        if self.training:
            return super().forward(x)
        return F.batch_norm(x, self.running_mean, self.variance, self.weight, self.bias, eps=self.eps)

    @torch.no_grad()
    def plain(self) -> nn.BatchNorm2d:
        """Return the usual batch norm that gives the same results in evaluation mode."""
        norm = nn.BatchNorm2d(self.num_features, self.eps, device=self.running_var.device)
        norm.load_state_dict(self.state_dict() | {"running_var": self.variance})
        return norm.eval()
