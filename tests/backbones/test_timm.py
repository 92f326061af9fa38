"""timm's models as backbones, and those among them that have no name of their own here."""

import pytest
import timm
import torch
from torch import Tensor
from torch.nn import functional as F

from detkit.backbones.timm import TimmBackbone
from detkit.errors import DetkitError

FAST = ["test_resnet", "test_convnext", "test_mambaout", "test_vit", "mobilenetv3_small_050", "test_coatnet"]
SLOW = [
    "coatnet_pico_rw_224",
    "convnext_atto",
    "eva02_tiny_patch14_224",
    "hrnet_w18_small",
    "test_vit_relpos",
    "twins_svt_small",
    "vit_small_patch14_dinov2",
]
SIZES = (224, 224), (256, 320)


def models(names: list[str]) -> list[object]:
    return [pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in names]


def assert_as_declared(backbone: TimmBackbone, maps: list[Tensor], size_hw: tuple[int, int]) -> None:
    expected = [
        (channels, size_hw[0] // stride, size_hw[1] // stride)
        for channels, stride in zip(backbone.channels, backbone.strides, strict=True)
    ]
    assert [tuple(x.shape[1:]) for x in maps] == expected


@pytest.mark.parametrize("name", models(FAST + SLOW))
def test_declared_is_given_at_two_sizes(name: str) -> None:
    torch.manual_seed(0)
    backbone = TimmBackbone(name, size_hw=SIZES[0])
    if backbone.any_size:
        built = [(backbone, size) for size in SIZES]
    else:
        built = [(backbone, SIZES[0]), (TimmBackbone(name, size_hw=SIZES[1]), SIZES[1])]
    for network, size in built:
        maps = network(torch.randn(2, 3, *size))
        assert network.strides == (8, 16, 32)
        assert_as_declared(network, maps, size)
        assert all(x.isfinite().all() for x in maps)
    sum((x * torch.randn_like(x)).sum() for x in maps).backward()
    assert [key for key, p in network.named_parameters() if p.requires_grad and p.grad is None] == []


@pytest.mark.parametrize(("name", "any_size"), [("test_vit", True), ("test_vit_relpos", False)])
def test_size_is_fixed_only_where_the_tables_are(name: str, any_size: bool) -> None:
    with torch.device("meta"):
        assert TimmBackbone(name, size_hw=(160, 192)).any_size is any_size


def test_maps_are_timms_own() -> None:
    backbone = TimmBackbone("resnet18").eval()
    own = timm.create_model("resnet18", features_only=True, out_indices=(2, 3, 4)).eval()
    own.load_state_dict(backbone.model.state_dict())
    images = torch.rand(1, 3, 96, 64)
    for got, expected in zip(backbone(images), own(images), strict=True):
        torch.testing.assert_close(got, expected, rtol=0, atol=0)


def test_channels_last_maps_are_turned_to_channels_first() -> None:
    backbone = TimmBackbone("test_mambaout").eval()
    own = timm.create_model("test_mambaout", features_only=True).eval()
    own.load_state_dict(backbone.model.state_dict(), strict=False)
    images = torch.rand(1, 3, 64, 96)
    for got, expected in zip(backbone(images), own(images)[1:], strict=True):
        torch.testing.assert_close(got, expected.movedim(-1, 1), rtol=0, atol=0)


def test_pyramid_stands_on_the_last_map() -> None:
    backbone = TimmBackbone("test_vit", size_hw=(160, 160)).eval()
    own = timm.create_model("test_vit", features_only=True).eval()
    own.load_state_dict(backbone.model.state_dict(), strict=False)
    images = torch.rand(1, 3, 160, 160)
    assert backbone.pyramid is not None
    for got, expected in zip(backbone(images), backbone.pyramid(own(images)[-1]), strict=True):
        torch.testing.assert_close(got, expected)


def test_one_level_of_a_transformer_is_its_own_map() -> None:
    backbone = TimmBackbone("test_vit", strides=(16,), size_hw=(64, 64))
    assert backbone.pyramid is None
    assert_as_declared(backbone, backbone(torch.rand(1, 3, 64, 64)), (64, 64))


def test_levels_are_cut_behind_the_coarsest() -> None:
    backbone = TimmBackbone("resnet18", strides=(16, 8))
    assert backbone.strides == (8, 16)
    assert backbone.channels == (128, 256)
    assert not any(key.startswith("model.layer4") for key in backbone.state_dict())


def test_mean_and_std_are_the_models() -> None:
    assert TimmBackbone("test_mambaout").mean == (0.485, 0.456, 0.406)
    assert TimmBackbone("test_vit").std == (0.5, 0.5, 0.5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["test_vit", "resnet18", "swin_tiny_patch4_window7_224"])
def test_runs_exported_under_autocast_and_channels_last(name: str) -> None:
    backbone = TimmBackbone(name, size_hw=(64, 64)).eval()
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        plain = backbone(images)
        exported = torch.export.export(backbone, (images,)).module()(images)
        last = backbone.to(memory_format=torch.channels_last)(images.to(memory_format=torch.channels_last))
        with torch.autocast("cpu", torch.bfloat16):
            half = backbone(images)
    for a, b, c, d in zip(plain, exported, last, half, strict=True):
        torch.testing.assert_close(b, a)
        torch.testing.assert_close(c, a, rtol=1e-3, atol=1e-3)
        assert (d.float() - a).abs().mean() < 0.05 * a.abs().mean()


@pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
def test_a_picture_of_no_whole_cells_is_padded_and_its_maps_are_cut(name: str) -> None:
    backbone = TimmBackbone(name, strides=(16,), size_hw=(64, 64)).eval()
    images = torch.rand(1, 3, 33, 100)
    (x,) = backbone(images)
    assert x.shape[2:] == (3, 7)
    (whole,) = backbone(F.pad(images, (0, 28, 0, 31)))
    torch.testing.assert_close(x, whole[..., :3, :7], rtol=0, atol=0)


@pytest.mark.slow
def test_tables_read_at_computed_indices_fix_the_size() -> None:
    backbone = TimmBackbone("mvitv2_tiny", size_hw=(160, 160))
    assert not backbone.any_size
    assert_as_declared(backbone, backbone(torch.rand(1, 3, 160, 160)), (160, 160))


def test_size_is_rounded_up_to_whole_cells() -> None:
    assert TimmBackbone("test_resnet", size_hw=(800, 1333)).size_hw == (800, 1344)


def test_nothing_is_downloaded_without_being_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("the network was touched")

    monkeypatch.setattr("socket.socket.connect", refuse)
    monkeypatch.setattr("socket.getaddrinfo", refuse)
    TimmBackbone("test_convnext")


def test_another_size_than_the_fixed_one_is_named() -> None:
    backbone = TimmBackbone("test_vit_relpos", size_hw=(64, 96))
    with pytest.raises(DetkitError, match=r"timm/test_vit_relpos takes only pictures of .* 64×96, got 96×96"):
        backbone(torch.rand(1, 3, 96, 96))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("resnet_18", {}, r"timm has no model 'resnet_18'; did you mean 'resnet18'"),
        ("hf-hub:timm/resnet18", {}, r"timm has no model 'hf-hub:timm/resnet18'"),
        ("resnet18.a1_in2k", {}, r"timm has no weights 'a1_in2k' of resnet18; did you mean 'resnet18.a1_in1k'"),
        ("darknet21", {"pretrained": True}, r"backbone.pretrained: timm has no weights of darknet21"),
        ("nest_tiny", {}, r"timm/nest_tiny has maps of strides 4, 8, 16, not of 32"),
        ("test_vit", {"strides": (12,)}, r"timm/test_vit has no map of stride 12 from one of stride 16"),
        ("mobilevitv2_050", {"size_hw": (224, 224)}, r"its map of stride 32 is 8×8, not 7×7"),
        ("nest_tiny", {"strides": (4, 8), "size_hw": (64, 96)}, r"no maps for pictures of 64×96.*square"),
    ],
)
def test_what_cannot_be_built_is_said(name: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(DetkitError, match=message):
        TimmBackbone(name, **options)


def test_weights_without_a_connection_are_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: object, **__: object) -> None:
        raise ConnectionError("no route to host\nand more")

    monkeypatch.setattr("timm.models._builder.load_pretrained", offline)
    with pytest.raises(DetkitError, match=r"weights of timm/resnet18 could not be loaded \(no route to host\)"):
        TimmBackbone("resnet18", pretrained=True)
