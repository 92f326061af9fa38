"""Networks that turn a picture into feature maps, by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from inspect import signature

from pydantic import Field, model_validator

from detkit.backbones.base import Backbone
from detkit.backbones.darknet import Darknet19, Darknet53, DarknetReference, Extraction, TinyDarknet
from detkit.backbones.lenet import LeNet5
from detkit.backbones.mobilenet import MobileNetV3Large
from detkit.backbones.nat import NATBase, NATMini, NATSmall, NATTiny
from detkit.backbones.psvit import PSViT1DBase, PSViT1DSmall, PSViT1DTiny, PSViT2DBase, PSViT2DSmall, PSViT2DTiny
from detkit.backbones.pvt import PVTLarge, PVTMedium, PVTSmall, PVTTiny
from detkit.backbones.simple_cnn import SimpleCNN
from detkit.backbones.zoo import ZOO
from detkit.config import Strict
from detkit.errors import DetkitError, nearest

BACKBONES: dict[str, Callable[..., Backbone]] = {
    "darknet19": Darknet19,
    "darknet53": Darknet53,
    "darknet_reference": DarknetReference,
    "darknet_tiny": TinyDarknet,
    "extraction": Extraction,
    "lenet5": LeNet5,
    "mobilenet_v3_large": MobileNetV3Large,
    "nat_mini": NATMini,
    "nat_tiny": NATTiny,
    "nat_small": NATSmall,
    "nat_base": NATBase,
    "psvit_1d_tiny": PSViT1DTiny,
    "psvit_1d_small": PSViT1DSmall,
    "psvit_1d_base": PSViT1DBase,
    "psvit_2d_tiny": PSViT2DTiny,
    "psvit_2d_small": PSViT2DSmall,
    "psvit_2d_base": PSViT2DBase,
    "pvt_tiny": PVTTiny,
    "pvt_small": PVTSmall,
    "pvt_medium": PVTMedium,
    "pvt_large": PVTLarge,
    "simple-cnn": SimpleCNN,
}


class BackboneConfig(Strict):
    """Which backbone: by a name that `detkit models` lists, or `timm/<model>`, any that gives feature maps.

    pretrained: download the weights of timm or torchvision when the model is built for training. weights: what training
    starts from, the backbone of a checkpoint or of a config that comes with one, or a file of timm's or torchvision's
    own; nothing reads it afterwards. drop_path: probability with which the last block is passed over in training,
    falling to 0 at the first (Deep Networks with Stochastic Depth, Huang et al., 2016, arXiv 1603.09382).
    """

    name: str
    pretrained: bool = False
    weights: str | None = None
    drop_path: float = Field(0, ge=0, lt=1)

    @model_validator(mode="after")
    def _one_start(self) -> BackboneConfig:
        if self.pretrained and self.weights is not None:
            raise ValueError("pretrained and weights are two starts; keep one")
        return self


def build_backbone(config: BackboneConfig, strides: Sequence[int], size_hw: tuple[int, int] | None = None) -> Backbone:
    """Build a backbone that gives one map per stride, finest first.

    size_hw: (height, width) of the pictures, for models whose position tables are fixed when they are built.
    """
    source = ZOO.get(config.name, config.name)
    if source.startswith("timm/"):
        from detkit.backbones.timm import TimmBackbone

        return TimmBackbone(source.removeprefix("timm/"), config.pretrained, strides, size_hw, config.drop_path)
    if config.name not in BACKBONES | ZOO:
        raise DetkitError(
            f"backbone.name: unknown backbone {config.name!r}{nearest(config.name, BACKBONES | ZOO)} "
            "(`detkit models` lists them; timm's others are timm/<model>)"
        )
    options = {"drop_path": config.drop_path} if config.drop_path else {}
    if options and (config.name in ZOO or "drop_path" not in signature(BACKBONES[config.name]).parameters):
        raise DetkitError(f"backbone.drop_path: {config.name} has no blocks to pass over; set it to 0")
    if config.pretrained and config.name not in ZOO:
        raise DetkitError(f"backbone.pretrained: {config.name} has no weights to download; pass backbone.weights")
    try:
        if config.name in ZOO:
            from detkit.backbones.torchvision import PYRAMIDS

            return PYRAMIDS[source](strides, config.pretrained)
        own = BACKBONES[config.name](strides, **options)
    except ValueError as error:
        raise DetkitError(f"backbone.name: {config.name} has {error}") from None
    return own
