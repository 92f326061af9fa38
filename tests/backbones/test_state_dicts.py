"""State dicts of timm's and torchvision's own models: taken over whole, and what they compute with them."""

import pytest
import timm
import torch
import torchvision
from torch import nn

from detkit.backbones import BackboneConfig, build_backbone
from detkit.backbones.whole import build_whole
from detkit.backbones.zoo import FAMILIES, ZOO
from detkit.models import read_table

ROWS = {entry.name: entry for entry in read_table() if entry.kind == "backbone"}
OF_TIMM = [
    min(family.models, key=lambda name: ROWS[name].parameters)
    for family in FAMILIES.values()
    if all(source.startswith("timm/") for source in family.models.values())
]
FAST = {"resnet18", "regnetx_200mf", "efficientnet_b0", "vit_ti", "pvt_v2_b0"}


def drawn(model: nn.Module) -> nn.Module:
    """A model none of whose numbers is the one that it begins with, in evaluation mode."""
    torch.manual_seed(0)
    for tensor in model.state_dict().values():
        if tensor.is_floating_point():
            tensor.mul_(torch.empty_like(tensor).uniform_(0.8, 1.2)).add_(0.01 * torch.rand_like(tensor))
    return model.eval()


@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n in FAST else pytest.mark.slow) for n in OF_TIMM])
def test_of_timm(name: str) -> None:
    model = drawn(timm.create_model(ZOO[name].removeprefix("timm/"), num_classes=5))
    config, size = BackboneConfig(name=name), ROWS[name].size
    whole = build_whole(config, 5, size).eval()
    whole.load_state_dict(whole.taken_from(model.state_dict()), strict=True)
    backbone = build_backbone(config, ROWS[name].strides[-1:], size).eval()
    backbone.load_state_dict(backbone.taken_from(model.state_dict()), strict=True)
    images = torch.rand(1, 3, *size)
    with torch.no_grad():
        torch.testing.assert_close(whole(images).mean(1), model(images), rtol=1e-4, atol=1e-4)
        (expected,) = model.forward_intermediates(images, indices=1, intermediates_only=True)
        torch.testing.assert_close(backbone(images)[0], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "name", ["resnet18", *(pytest.param(n, marks=pytest.mark.slow) for n in ("densenet121", "vgg11", "vgg11_bn"))]
)
def test_of_torchvision(name: str) -> None:
    model = drawn(torchvision.models.get_model(name, num_classes=5))
    config = BackboneConfig(name=name)
    whole = build_whole(config, 5, (224, 224)).eval()
    whole.load_state_dict(whole.taken_from(model.state_dict()), strict=True)
    backbone = build_backbone(config, (8, 16))
    backbone.load_state_dict(backbone.taken_from(model.state_dict()), strict=True)
    images = torch.rand(1, 3, 224, 224)
    with torch.no_grad():
        torch.testing.assert_close(whole(images)[:, 0], model(images), rtol=1e-4, atol=1e-4)


def test_of_torchvisions_mobilenet() -> None:
    model = drawn(torchvision.models.mobilenet_v3_large(norm_layer=nn.BatchNorm2d))  # as in its detectors
    backbone = build_backbone(BackboneConfig(name="mobilenet_v3_large"), (8, 32)).eval()
    backbone.load_state_dict(backbone.taken_from(model.state_dict()), strict=True)
    images = torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        for got, depth in zip(backbone(images), (7, 17), strict=False):
            torch.testing.assert_close(got, model.features[:depth](images))
