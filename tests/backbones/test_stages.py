import pytest

from detkit.backbones import BackboneConfig, build_backbone


@pytest.mark.parametrize(
    ("name", "stages", "first"),
    [
        ("darknet53", 6, {"stages"}),
        ("darknet_tiny", 6, {"stages"}),
        ("timm/resnet18", 4, {"conv1", "bn1", "layer1"}),
        ("timm/swin_tiny_patch4_window7_224", 4, {"patch_embed", "layers_0"}),
        ("timm/deit_tiny_patch16_224", 12, {"patch_embed", "blocks"}),
        ("vgg16", 6, {"features_0", "features_2"}),
        ("timm/mobilenetv3_small_100", 6, {"conv_stem", "bn1", "blocks"}),
    ],
)
def test_stages_come_from_the_picture_on_and_leave_nothing_out(name, stages, first) -> None:
    backbone = build_backbone(BackboneConfig(name=name), (16, 32), (224, 224))
    found = backbone.stages_from_picture()
    assert len(found) == stages
    names = {id(p): name.removeprefix("model.").removeprefix("model.") for name, p in backbone.named_parameters()}
    assert {names[id(p)].split(".")[0] for p in found[0].parameters()} == first
    inside = [id(p) for stage in found for p in stage.parameters()]
    assert len(inside) == len(set(inside))
    outside = {names[i] for i in names.keys() - set(inside)}
    assert outside <= {"cls_token", "pos_embed"}
