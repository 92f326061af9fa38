"""What every backbone is: pictures in, a pyramid of feature maps out."""

import re
from abc import ABC, abstractmethod
from collections.abc import Iterator

from torch import Tensor, nn

_STAGE = re.compile(r"(layer|stage|block)s?[_.]?\d+$")


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

    def stages_from_picture(self) -> list[nn.ModuleList]:
        """The stages in the order of the computation, for freezing the first of them.

        A stage is what `stages`, `layers` or `blocks` number. What precedes one, such as a stem, belongs to it, and
        what follows the last belongs to the last.
        """
        stages: list[nn.ModuleList] = []
        before: list[nn.Module] = []
        for name, module in _walk(self):
            if _STAGE.search(name):
                stages.append(nn.ModuleList([*before, module]))
                before = []
            else:
                before.append(module)
        if stages:
            stages[-1].extend(before)
        return stages


def _walk(module: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Yield stages, and what holds no stage, with their names."""
    for name, child in module.named_children():
        full = f"{prefix}{name}"
        inside = any(_STAGE.search(f"{full}.{name}") for name, _ in child.named_modules() if name.count(".") < 3)
        if inside and not _STAGE.search(full):
            yield from _walk(child, f"{full}.")
        else:
            yield full, child
