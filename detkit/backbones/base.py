"""What every backbone is: pictures in, a pyramid of feature maps out; or, with its own classifier, scores."""

import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional as F

_STAGE = re.compile(r"((layer|stage|block)s?[_.]?|\.s|\.network\.)\d+$")


class Network(nn.Module, ABC):
    """A network that looks at normalised pictures [B, 3, H, W].

    mean, std: of the RGB values in 0 … 1 that it was made for; the detector or classifier normalises with them.
    """

    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)

    @property
    def class_tokens(self) -> int:
        """How many tokens of a transformer stand for the picture, for a classifier to read."""
        return 0

    def tokens(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] → the class tokens behind the last block [B, `class_tokens`, C], where there are any."""
        raise NotImplementedError(f"{type(self).__name__} has no class token")

    def taken_from(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return what a state dict of such a network holds for this one, under its names; the rest is left."""
        return {name: tensors[name] for name in self.state_dict() if name in tensors}

    def stages_from_picture(self) -> list[nn.ModuleList]:
        """The stages in the order of the computation, for freezing the first of them.

        A stage is what `stages`, `layers` or `blocks` number, RegNet's `s` and VOLO's `network`. What precedes one, as
        a stem does, belongs to it, what follows the last to the last, and what stands beside them all, such as a table
        of positions, to the first. Of a network without such numbers, as VGG, max-pools part them.
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
        layers = [module for module in self.modules() if not list(module.children())]
        pools = [i for i, layer in enumerate(layers) if isinstance(layer, nn.MaxPool2d)]
        return [nn.ModuleList(layers[a:b]) for a, b in pairwise([0, *pools, len(layers)])] if pools else []


class Backbone(Network):
    """A network that turns pictures into feature maps, finest first.

    channels, strides: of each map.
    """

    channels: tuple[int, ...]
    strides: tuple[int, ...]

    @abstractmethod
    def forward(self, images: Tensor) -> list[Tensor]:
        """[B, 3, H, W] → one map [B, channels[i], ⌈H / strides[i]⌉, ⌈W / strides[i]⌉] per level."""


class WholeNetwork(Network):
    """A network with the classifier of its paper."""

    @abstractmethod
    def forward(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] → scores [B, heads, classes], of one head, or two with a token of distillation."""

    def with_auxiliary(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """[B, 3, H, W] → scores, and those of classifiers that only help in training [B, classifiers, classes]."""
        scores = self(images)
        return scores, scores[:, :0]

    def taken_from(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """As for every network, or under the names of timm or torchvision."""
        return super().taken_from({f"model.{name.removeprefix('model.')}": tensor for name, tensor in tensors.items()})


def to_whole_cells(images: Tensor, step: int) -> Tensor:
    """Pad pictures [B, 3, H, W] with zeros, right and below, until both sides are multiples of the step."""
    height, width = images.shape[-2:]
    padding = 0, -width % step, 0, -height % step
    return F.pad(images, padding) if any(padding) else images


def cut_to_cells(maps: Sequence[Tensor], strides: Sequence[int], size_hw: Sequence[int]) -> list[Tensor]:
    """Return of each map [B, C, h, w] the ⌈H / stride⌉ × ⌈W / stride⌉ cells on a picture of H × W."""
    cells = [[-(-side // stride) for side in size_hw] for stride in strides]
    return [
        x if list(x.shape[-2:]) == [rows, columns] else x[..., :rows, :columns]
        for x, (rows, columns) in zip(maps, cells, strict=True)
    ]


def _walk(module: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Yield stages, and what holds no stage, with their names."""
    if beside := list(module.parameters(recurse=False)):
        yield f"{prefix}parameters", nn.ParameterList(beside)
    for name, child in module.named_children():
        full = f"{prefix}{name}"
        inside = any(_STAGE.search(f"{full}.{name}") for name, _ in child.named_modules() if name.count(".") < 3)
        if inside and not _STAGE.search(full):
            yield from _walk(child, f"{full}.")
        else:
            yield full, child
