"""AlexNet and GoogLeNet, which timm lacks, as torchvision has them: as feature pyramids and as classifiers.

AlexNet: One weird trick for parallelizing convolutional neural networks (Krizhevsky, 2014, arXiv 1404.5997), the form
for one GPU of the network of Krizhevsky, Sutskever and Hinton (2012).
GoogLeNet: Going Deeper with Convolutions (Szegedy et al., 2014, arXiv 1409.4842), table 1; torchvision adds batch norm
behind each convolution and makes the 5×5 convolutions 3×3, as in the weights that were ported.
Shapes: B pictures of H × W, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import AlexNet_Weights, GoogLeNet_Weights, alexnet, googlenet

from detkit.backbones.base import Backbone, WholeNetwork, cut_to_cells, to_whole_cells
from detkit.errors import DetkitError

Layers = dict[int, tuple[str, ...]]
"""The layers up to the map of each stride, from the picture on, by their names in torchvision."""

_ALEXNET: Layers = {
    4: ("features.0", "features.1"),
    8: tuple(f"features.{i}" for i in range(2, 5)),
    16: tuple(f"features.{i}" for i in range(5, 12)),
    32: ("features.12",),
}
_GOOGLENET: Layers = {
    2: ("conv1",),
    4: ("maxpool1", "conv2", "conv3"),
    8: ("maxpool2", "inception3a", "inception3b"),
    16: ("maxpool3", "inception4a", "inception4b", "inception4c", "inception4d", "inception4e"),
    32: ("maxpool4", "inception5a", "inception5b"),
}


class _Layered(Backbone):
    """The layers of a network of torchvision up to the coarsest map that is wanted, under their own names."""

    def __init__(self, whole: Any, layers: Layers, channels: Sequence[int], strides: Sequence[int]) -> None:
        super().__init__()
        unknown = set(strides) - set(layers)
        if unknown:
            raise ValueError(f"no map of stride {min(unknown)}: this backbone has {', '.join(map(str, layers))}")
        self.strides = tuple(sorted(strides))
        by_stride = dict(zip(layers, channels, strict=True))
        self.channels = tuple(by_stride[stride] for stride in self.strides)
        self.layers = {stride: names for stride, names in layers.items() if stride <= self.strides[-1]}
        self.model = nn.Module()
        for name in (name for names in self.layers.values() for name in names):
            parent, _, child = name.rpartition(".")
            if parent and not hasattr(self.model, parent):
                self.model.add_module(parent, nn.Module())
            self.model.get_submodule(parent).add_module(child, whole.get_submodule(name))

    def forward(self, images: Tensor) -> list[Tensor]:
        """[B, 3, H, W] → one map per stride, finest first."""
        x, maps = self._padded(images), []
        for stride, names in self.layers.items():
            for name in names:
                x = self.model.get_submodule(name)(x)
            if stride in self.strides:
                maps.append(x)
        return cut_to_cells(maps, self.strides, images.shape[-2:])

    def _padded(self, images: Tensor) -> Tensor:
        return to_whole_cells(images, 32)

    def taken_from(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """As for every backbone, or of the whole network under torchvision's names."""
        return super().taken_from({f"model.{name.removeprefix('model.')}": tensor for name, tensor in tensors.items()})

    def stages_from_picture(self) -> list[nn.ModuleList]:
        """The stages, each of the layers up to one more stride."""
        return _stages(self.model, self.layers)


class AlexNet(_Layered):
    """The five convolutions of AlexNet; maps before the pooling at strides 4, 8 and 16, behind the last one at 32.

    The picture is padded right and below by what the first convolution lacks, so that H / stride cells come of it.
    """

    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

    def __init__(self, strides: Sequence[int] = (8, 16, 32), pretrained: bool = False) -> None:
        super().__init__(_alexnet(1000, 0, pretrained), _ALEXNET, (64, 192, 256, 256), strides)
        for module in self.modules():
            if isinstance(module, nn.MaxPool2d):
                module.ceil_mode = True

    def _padded(self, images: Tensor) -> Tensor:
        return F.pad(super()._padded(images), (0, 3, 0, 3))


class GoogLeNet(_Layered):
    """The nine inceptions of GoogLeNet; maps before each pooling, and behind the last inception."""

    mean = std = (0.5, 0.5, 0.5)  # what torchvision's `transform_input` turns ImageNet's mean and deviation into

    def __init__(self, strides: Sequence[int] = (8, 16, 32), pretrained: bool = False) -> None:
        super().__init__(_googlenet(1000, 0, pretrained), _GOOGLENET, (64, 192, 480, 832, 1024), strides)


class WholeAlexNet(WholeNetwork):
    """AlexNet with its three connected layers. dropout: by default the ½ of the paper."""

    mean, std = AlexNet.mean, AlexNet.std

    def __init__(self, num_classes: int, dropout: float = 0, pretrained: bool = False) -> None:
        super().__init__()
        self.model = _alexnet(num_classes, dropout or 0.5, pretrained)

    def forward(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] → scores [B, 1, C]."""
        scores: Tensor = self.model(images)
        return scores[:, None]

    def stages_from_picture(self) -> list[nn.ModuleList]:
        """The stages of the convolutions; the connected layers belong to the last."""
        return _stages(self.model, _ALEXNET, self.model.classifier)


class WholeGoogLeNet(WholeNetwork):
    """GoogLeNet with its classifier, and the two that help it in training. dropout: by default 0.2."""

    mean, std = GoogLeNet.mean, GoogLeNet.std

    def __init__(self, num_classes: int, dropout: float = 0, pretrained: bool = False) -> None:
        super().__init__()
        self.model = _googlenet(num_classes, dropout or 0.2, pretrained)

    def forward(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] → scores [B, 1, C]."""
        return self._head(self._maps(images)["inception5b"])

    def with_auxiliary(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """[B, 3, H, W] → scores [B, 1, C], and those of the classifiers on inception (4a) and (4d) [B, 2, C]."""
        maps = self._maps(images)
        auxiliary = [self.model.aux1(maps["inception4a"]), self.model.aux2(maps["inception4d"])]
        return self._head(maps["inception5b"]), torch.stack(auxiliary, 1)

    def _maps(self, images: Tensor) -> dict[str, Tensor]:
        """What each layer makes of the one before."""
        maps: dict[str, Tensor] = {}
        x = images
        for name in (name for names in _GOOGLENET.values() for name in names):
            maps[name] = x = self.model.get_submodule(name)(x)
        return maps

    def _head(self, x: Tensor) -> Tensor:
        scores: Tensor = self.model.fc(self.model.dropout(x.mean((2, 3))))
        return scores[:, None]

    def stages_from_picture(self) -> list[nn.ModuleList]:
        """The stages between the poolings; all classifiers belong to the last."""
        return _stages(self.model, _GOOGLENET, self.model.aux1, self.model.aux2, self.model.fc)


def _stages(model: nn.Module, layers: Layers, *heads: nn.Module) -> list[nn.ModuleList]:
    stages = [nn.ModuleList([model.get_submodule(name) for name in names]) for names in layers.values()]
    stages[-1].extend(heads)
    return stages


def _alexnet(num_classes: int, dropout: float, pretrained: bool) -> Any:
    model = alexnet(num_classes=num_classes, dropout=dropout)
    return _with_weights(model, "alexnet", AlexNet_Weights.DEFAULT if pretrained else None)


def _googlenet(num_classes: int, dropout: float, pretrained: bool) -> Any:
    model = googlenet(num_classes=num_classes, dropout=dropout, init_weights=not pretrained, aux_logits=True)
    return _with_weights(model, "googlenet", GoogLeNet_Weights.DEFAULT if pretrained else None)


def _with_weights(model: Any, name: str, weights: Any) -> Any:
    """Load torchvision's weights where they are asked for; of other classes the last layer keeps its random start."""
    if weights is None:
        return model
    try:
        tensors = weights.get_state_dict(check_hash=True)
    except OSError as error:
        raise DetkitError(
            f"backbone.pretrained: the weights of {name} could not be loaded ({error}); connect to the network once, "
            "or set it to false"
        ) from error
    own = model.state_dict()
    model.load_state_dict(own | {key: value for key, value in tensors.items() if value.shape == own[key].shape})
    return model


PYRAMIDS: dict[str, Callable[[Sequence[int], bool], Backbone]] = {
    "torchvision/alexnet": AlexNet,
    "torchvision/googlenet": GoogLeNet,
}
"""The feature pyramids of this file, by the names that `detkit.backbones.zoo` gives them."""

WHOLE: dict[str, Callable[[int, float, bool], WholeNetwork]] = {
    "torchvision/alexnet": WholeAlexNet,
    "torchvision/googlenet": WholeGoogLeNet,
}
"""The same with their classifiers."""
