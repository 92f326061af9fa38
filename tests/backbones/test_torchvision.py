"""AlexNet and GoogLeNet: the maps and scores of torchvision's own with the same weights."""

import pytest
import torch
from torchvision.models import alexnet, googlenet

from detkit.backbones import BackboneConfig, build_backbone
from detkit.backbones.torchvision import AlexNet, GoogLeNet, WholeAlexNet, WholeGoogLeNet
from detkit.errors import DetkitError


def like_torchvision(kind, model, strides=(8, 16, 32)):
    backbone = kind(strides).eval()
    backbone.load_state_dict(backbone.taken_from({f"model.{key}": value for key, value in model.state_dict().items()}))
    return backbone


def test_alexnets_maps_are_torchvisions_where_the_padding_is_not_seen() -> None:
    model = alexnet().eval()
    images = torch.rand(1, 3, 224, 224)
    fine, _, _ = like_torchvision(AlexNet, model, (4, 8, 32))(images)
    with torch.inference_mode():
        expected = model.features[:2](images)
    assert fine.shape[2:] == (56, 56)
    assert expected.shape[2:] == (55, 55)
    torch.testing.assert_close(fine[..., :55, :55], expected)


def test_googlenets_maps_are_torchvisions() -> None:
    model = googlenet(init_weights=False, aux_logits=False).eval()
    seen = {}
    for name in ("inception3b", "inception4e", "inception5b"):
        getattr(model, name).register_forward_hook(lambda _, __, out, name=name: seen.update({name: out}))
    images = torch.rand(1, 3, 64, 96)
    with torch.inference_mode():
        model(images)
        maps = like_torchvision(GoogLeNet, model)(images)
    for got, expected in zip(maps, seen.values(), strict=True):
        torch.testing.assert_close(got, expected)


def test_whole_googlenet_is_torchvisions_in_training_too() -> None:
    model = googlenet(num_classes=7, init_weights=False, aux_logits=True)
    whole = WholeGoogLeNet(7)
    whole.model.load_state_dict(model.state_dict(), strict=True)
    for module in [*whole.modules(), *model.modules()]:
        if isinstance(module, torch.nn.Dropout):
            module.eval()
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        expected = model(images)
        scores, auxiliary = whole.with_auxiliary(images)
        torch.testing.assert_close(scores[:, 0], expected.logits)
        torch.testing.assert_close(auxiliary, torch.stack([expected.aux_logits1, expected.aux_logits2], 1))
        torch.testing.assert_close(whole.eval()(images)[:, 0], model.eval()(images))


@pytest.mark.slow
def test_whole_alexnet_is_torchvisions() -> None:
    model = alexnet(num_classes=7).eval()
    whole = WholeAlexNet(7).eval()
    whole.model.load_state_dict(model.state_dict(), strict=True)
    images = torch.rand(2, 3, 224, 224)
    with torch.no_grad():
        scores, auxiliary = whole.with_auxiliary(images)
        torch.testing.assert_close(scores[:, 0], model(images))
    assert auxiliary.shape == (2, 0, 7)


def test_googlenets_input_is_normalised_as_its_weights_want_it() -> None:
    """What torchvision does to a picture that is normalised as ImageNet's, on top of that."""
    images = torch.rand(1, 3, 8, 8)
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    expected = googlenet(transform_input=True, init_weights=False)._transform_input((images - mean) / std)
    torch.testing.assert_close((images - GoogLeNet.mean[0]) / GoogLeNet.std[0], expected)


@pytest.mark.parametrize(("name", "stages"), [("alexnet", 4), ("googlenet", 5)])
def test_stages_leave_nothing_out(name: str, stages: int) -> None:
    with torch.device("meta"):
        whole = {"alexnet": WholeAlexNet, "googlenet": WholeGoogLeNet}[name](3)
        pyramid = build_backbone(BackboneConfig(name=name), (8, 16, 32))
    for network in (pyramid, whole):
        found = network.stages_from_picture()
        assert len(found) == stages
        assert {id(p) for s in found for p in s.parameters()} == {id(p) for p in network.parameters()}


def test_what_no_map_needs_is_left_out() -> None:
    fine = build_backbone(BackboneConfig(name="googlenet"), (4, 8))
    assert fine.channels == (192, 480)
    assert not any("inception4" in key for key in fine.state_dict())
    with pytest.raises(DetkitError, match="alexnet has no map of stride 2: this backbone has 4, 8, 16, 32"):
        build_backbone(BackboneConfig(name="alexnet"), (2, 32))


def test_weights_without_a_connection_are_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: object, **__: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", offline)
    with pytest.raises(DetkitError, match=r"weights of googlenet could not be loaded \(no route to host\)"):
        build_backbone(BackboneConfig(name="googlenet", pretrained=True), (32,))


def test_released_weights_are_taken_but_for_the_last_layers_of_other_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    released = googlenet(init_weights=False, aux_logits=True).state_dict()
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", lambda *_, **__: released)
    got = WholeGoogLeNet(7, pretrained=True).model.state_dict()
    new = {key for key in got if not torch.equal(got[key], released[key])}
    assert new == {f"{layer}.{kind}" for layer in ("fc", "aux1.fc2", "aux2.fc2") for kind in ("weight", "bias")}
    pyramid = build_backbone(BackboneConfig(name="googlenet", pretrained=True), (8,)).state_dict()
    assert pyramid
    assert all(torch.equal(value, released[key.removeprefix("model.")]) for key, value in pyramid.items())
