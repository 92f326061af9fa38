"""Classifiers with the head of their paper, and how they and files of timm's become a detector's backbone."""

import pytest
import timm
import torch
from timm.models.deit import VisionTransformerDistilled
from torch.nn import functional as F

from detkit.backbones import BackboneConfig, build_backbone
from detkit.backbones.timm import TimmBackbone
from detkit.backbones.whole import TimmNetwork, build_whole
from detkit.classify.classifier import Classifier
from detkit.classify.losses import classifier_losses
from detkit.config import validate
from detkit.errors import DetkitError


def whole(name: str, size: int = 64, **options):
    return build_whole(BackboneConfig(name=name, **options), 5, (size, size))


@pytest.mark.parametrize("name", ["timm/test_vit", "timm/test_resnet", "timm/test_convnext", "timm/test_coatnet"])
def test_the_whole_network_is_timms(name: str) -> None:
    network = Classifier(whole(name), 5, pool="own").eval()
    size = {"img_size": 64} if name == "timm/test_coatnet" else {}
    own = timm.create_model(name.removeprefix("timm/"), num_classes=5, **size).eval()
    own.load_state_dict(network.backbone.model.state_dict(), strict=True)
    pictures = torch.rand(2, 3, 64, 64)
    with torch.inference_mode():
        torch.testing.assert_close(network(pictures), own(network.normalize(pictures)))


def test_deits_two_tokens_are_two_heads_whose_mean_timm_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    def small(*_, **options):
        options.pop("drop_path_rate", None)
        model = VisionTransformerDistilled(embed_dim=24, depth=1, num_heads=2, **options)
        model.pretrained_cfg = {"mean": (0.5,) * 3, "std": (0.5,) * 3}
        return model

    monkeypatch.setattr("timm.create_model", small)
    network = whole("deit_s_distilled", 224).eval()
    pictures = torch.rand(2, 3, 224, 224)
    with torch.inference_mode():
        heads = network(pictures)
        assert heads.shape == (2, 2, 5)
        assert (heads[:, 0] - heads[:, 1]).abs().max() > 1e-3
        torch.testing.assert_close(heads.mean(1), network.model(pictures))


def test_googlenets_classifiers_in_the_middle_count_three_tenths_each() -> None:
    torch.manual_seed(0)
    network = Classifier(whole("googlenet"), 5, pool="own")
    heads, auxiliary = network.with_auxiliary(torch.rand(2, 3, 64, 64))
    assert auxiliary.shape == (2, 2, 5)
    labels = torch.tensor([1, 3])
    losses = classifier_losses(heads, F.one_hot(labels, 5).float(), auxiliary=auxiliary)
    expected = 0.3 * (F.cross_entropy(auxiliary[:, 0], labels) + F.cross_entropy(auxiliary[:, 1], labels))
    torch.testing.assert_close(losses["auxiliary"], expected)
    torch.testing.assert_close(losses["classes"], F.cross_entropy(heads[:, 0], labels))
    sum(losses.values()).backward()
    assert [name for name, p in network.named_parameters() if p.grad is None] == []


def test_other_networks_have_none_in_the_middle() -> None:
    network = Classifier(build_backbone(BackboneConfig(name="timm/test_resnet"), (32,)), 5)
    heads, auxiliary = network.with_auxiliary(torch.rand(2, 3, 64, 64))
    assert auxiliary.shape == (2, 0, 5)
    truth = torch.full((2, 5), 0.2)
    assert classifier_losses(heads, truth, auxiliary=auxiliary).keys() == {"classes"}


def test_a_size_that_is_not_its_own_and_rates() -> None:
    with torch.device("meta"):
        network = TimmNetwork("vit_tiny_patch16_224", 5, size_hw=(96, 64), drop_path=0.2, dropout=0.1)
        assert network.model.pos_embed.shape[1] == 1 + 6 * 4
        assert network.model.head_drop.p == 0.1
        assert max(getattr(m, "drop_prob", 0) for m in network.modules()) == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("darknet19", {}, "classifier.pool: darknet19 has no classifier of its own"),
        ("vgg11", {"drop_path": 0.1}, "backbone.drop_path: timm/vgg11.tv_in1k has no stochastic depth"),
        ("alexnet", {"drop_path": 0.1}, "backbone.drop_path: alexnet has no blocks"),
        ("timm/nest_tiny", {"size": 50}, "cannot classify pictures of 50×50 .* made for 224×224"),
    ],
)
def test_what_cannot_be_built_is_said(name: str, options: dict, message: str) -> None:
    with pytest.raises(DetkitError, match=message), torch.device("meta"):
        whole(name, **options)


def test_layer_norm_belongs_to_other_heads() -> None:
    with pytest.raises(DetkitError, match=r"norm: with pool own there is none of detkit's"):
        validate(Classifier.Config, {"backbone": {"name": "resnet18"}, "pool": "own", "norm": True}, "c.yaml")


@pytest.mark.parametrize("name", ["test_vit", "test_resnet", "test_convnext", "test_coatnet"])
def test_a_backbone_takes_over_a_whole_network_by_any_of_its_names(name: str) -> None:
    """From a file of timm's, and from a classifier with its own head; a plain transformer's pyramid stays new."""
    model = timm.create_model(name, num_classes=3).eval()
    backbone = TimmBackbone(name, strides=(32,), size_hw=(64, 64)).eval()
    for prefix in ("", "model."):
        taken = backbone.taken_from({prefix + key: value for key, value in model.state_dict().items()})
        missing = backbone.state_dict().keys() - taken.keys()
        assert all(key.startswith("pyramid.") for key in missing)
    backbone.load_state_dict(taken, strict=False)
    size = model.pretrained_cfg["input_size"][1:]
    images = torch.rand(1, 3, *size)
    with torch.inference_mode():
        expected = model.forward_intermediates(images, indices=1, intermediates_only=True)[0]
        got = backbone.model(images)[-1]
        got = got[0] if backbone.class_tokens else got
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


def test_positions_and_patches_of_another_size_are_resampled() -> None:
    model = timm.create_model("vit_tiny_patch16_224", img_size=96, patch_size=8, num_classes=3, depth=1)
    backbone = TimmBackbone("vit_tiny_patch16_224", strides=(16,))
    taken = backbone.taken_from(model.state_dict())
    own = backbone.state_dict()
    names = [key for key in taken if key.endswith(("pos_embed", "patch_embed.proj.weight"))]
    assert len(names) == 2
    assert all(taken[key].shape == own[key].shape for key in names)
    assert model.patch_embed.proj.weight.shape[-1] == 8


def test_tensors_of_another_model_are_not_taken() -> None:
    backbone = TimmBackbone("test_vit", strides=(16,))
    own = backbone.state_dict()
    assert len(backbone.taken_from(timm.create_model("test_resnet").state_dict())) < len(own)
    with torch.device("meta"):
        network = whole("vgg11")
    assert network.taken_from({"classifier.0.weight": torch.zeros(8, 960)}) == {}
