"""Which layers are frozen first."""

import pytest
import torch

from detkit.backbones import BackboneConfig, build_backbone
from detkit.backbones.timm import Unfilled


@pytest.mark.parametrize(
    ("name", "stages", "first"),
    [
        ("darknet53", 6, {"stages"}),
        ("mobilenet_v3_large", 5, {"features"}),
        ("pvt_tiny", 4, {"patch_embed1", "pos_embed1", "block1"}),
        ("regnetx_200mf", 4, {"stem", "s1"}),
        ("timm/resnet18", 4, {"conv1", "bn1", "layer1"}),
        ("timm/swin_tiny_patch4_window7_224", 4, {"patch_embed", "layers_0"}),
        ("timm/deit_tiny_patch16_224", 12, {"cls_token", "pos_embed", "patch_embed", "blocks"}),
        ("vgg16", 6, {"features_0", "features_2"}),
        ("timm/mobilenetv3_small_100", 6, {"conv_stem", "bn1", "blocks"}),
    ],
)
def test_the_first_stage_begins_at_the_picture(name, stages, first) -> None:
    with torch.device("meta"), Unfilled():
        backbone = build_backbone(BackboneConfig(name=name), (16, 32), (224, 224))
    found = backbone.stages_from_picture()
    assert len(found) == stages
    names = {id(p): name.removeprefix("model.").removeprefix("model.") for name, p in backbone.named_parameters()}
    assert {names[id(p)].split(".")[0] for p in found[0].parameters()} == first


def test_a_frozen_stage_is_behind_no_other() -> None:
    """What a stage's map depends on is in it or in those before it."""
    backbone = build_backbone(BackboneConfig(name="mobilenet_v3_large"), (2, 4, 8, 16, 32))
    found = backbone.stages_from_picture()
    assert [len(stage) for stage in found] == [2, 2, 3, 6, 4]
    maps = backbone(torch.rand(2, 3, 64, 64))
    for i, map_ in enumerate(maps):
        behind = [p for stage in found[i + 1 :] for p in stage.parameters()]
        inside = [p for stage in found[: i + 1] for p in stage.parameters()]
        gradients = torch.autograd.grad(map_.sum(), inside + behind, retain_graph=True, allow_unused=True)
        assert [gradient is not None for gradient in gradients] == [True] * len(inside) + [False] * len(behind)
