"""The classifier on backbones of all kinds: what is averaged, tokens, and what others' weights make of it."""

import pytest
import timm
import torch
from torch.nn import functional as F

from detkit.backbones import BackboneConfig, build_backbone
from detkit.backbones.darknet import Darknet19
from detkit.classify.classifier import Classifier
from detkit.config import validate
from detkit.errors import DetkitError


def backbone(name: str, stride: int, size: int = 64, **options):
    return build_backbone(BackboneConfig(name=name, **options), (stride,), (size, size))


@pytest.mark.parametrize(
    ("name", "stride", "pool"),
    [
        ("darknet_tiny", 32, "scores"),
        ("darknet_reference", 64, "features"),
        ("timm/test_resnet", 32, "features"),
        ("timm/test_convnext", 32, "features"),
        ("timm/test_vit", 16, "token"),
        ("timm/test_vit", 16, "features"),
    ],
)
def test_every_backbone_classifies_and_learns(name, stride, pool) -> None:
    network = Classifier(backbone(name, stride), 5, pool=pool, norm=pool != "scores", dropout=0.1).train()
    scores = network(torch.rand(2, 3, 64, 64))
    assert scores.shape == (2, 5)
    F.cross_entropy(scores, torch.tensor([1, 3])).backward()
    without = [key for key, value in network.named_parameters() if value.requires_grad and value.grad is None]
    assert without == []


def test_features_and_scores_are_averaged_over_all_places() -> None:
    body = Darknet19((32,))
    by_features = Classifier(body, 7, pool="features").eval()
    by_scores, leaky = (Classifier(body, 7, pool="scores", activation=name).eval() for name in ("linear", "leaky"))
    for network in (by_scores, leaky):
        network.head.weight.data = by_features.head.weight.data[..., None, None]
        network.head.bias.data = by_features.head.bias.data
    pictures = torch.rand(2, 3, 64, 96)
    features = body(pictures)[0]
    expected = by_features.head(features.mean((2, 3)))
    torch.testing.assert_close(by_features(pictures), expected)
    torch.testing.assert_close(by_scores(pictures), expected)
    places = F.leaky_relu(by_features.head(features.permute(0, 2, 3, 1)), 0.1)
    torch.testing.assert_close(leaky(pictures), places.mean((1, 2)))


@pytest.mark.parametrize(
    ("name", "heads"),
    [
        ("test_vit", ["head"]),
        ("deit_tiny_distilled_patch16_224", ["head", "head_dist"]),
        pytest.param("tnt_s_patch16_224", ["head"], marks=pytest.mark.slow),
    ],
)
def test_tokens_give_what_timms_classifier_gives(name, heads) -> None:
    size = timm.get_pretrained_cfg(name).input_size[-1]
    whole = timm.create_model(name, num_classes=5).eval()
    network = Classifier(backbone(f"timm/{name}", 16, size), 5, pool="token", norm=True).eval()
    theirs = whole.state_dict()
    mine = {key: theirs[key.removeprefix("backbone.model.model.")] for key in network.state_dict() if "backbone" in key}
    mine |= {key: theirs[key] for key in theirs if key.startswith(("norm.", "head"))}
    network.load_state_dict(mine | {f"normalize.{key}": getattr(network.normalize, key) for key in ("mean", "std")})
    pictures = torch.rand(2, 3, size, size)
    assert [key.removesuffix(".bias") for key in mine if key.startswith("head") and "bias" in key] == heads
    with torch.inference_mode():
        torch.testing.assert_close(network(pictures), whole(network.normalize(pictures)), rtol=1e-4, atol=1e-5)


def test_stochastic_depth_reaches_the_blocks() -> None:
    def rates(network):
        return [module.drop_prob for module in network.modules() if type(module).__name__ == "DropPath"]

    assert rates(backbone("timm/test_vit", 16)) == []
    assert max(rates(backbone("timm/test_vit", 16, drop_path=0.3))) == pytest.approx(0.3)


@pytest.mark.parametrize("name", ["darknet19", "timm/vgg11"])
def test_a_backbone_without_stochastic_depth_says_so(name) -> None:
    with pytest.raises(DetkitError, match=r"backbone\.drop_path: .* set it to 0"):
        backbone(name, 16, drop_path=0.1)


def test_what_does_not_fit_is_named() -> None:
    with pytest.raises(DetkitError, match="the backbone has no class token"):
        Classifier(backbone("darknet_tiny", 32), 2, pool="token")
    with pytest.raises(DetkitError, match="TimmBackbone has no Darknet layout"):
        list(Classifier(backbone("timm/test_resnet", 32), 2).darknet_layers())
    with pytest.raises(DetkitError, match="only scores that are averaged have one; set pool: scores"):
        validate(Classifier.Config, {"backbone": {"name": "extraction"}, "activation": "leaky"}, "c.yaml")
