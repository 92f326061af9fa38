"""What all networks that are written here keep: maps as declared at every size, gradients, classifier, export."""

import pytest
import torch
from torch.nn import functional as F

from detkit.backbones import BackboneConfig, build_backbone
from detkit.classify.classifier import Classifier
from detkit.errors import DetkitError

STRIDES = {
    "simple-cnn": (2, 4, 8),
    "lenet5": (2, 4, 32),
    "pvt_tiny": (4, 8, 16, 32),
    "nat_mini": (4, 8, 16, 32),
    "psvit_1d_tiny": (16, 32),
    "psvit_2d_tiny": (8, 16, 32),
}
LARGER = {
    "pvt_small": "pvt_tiny", "pvt_medium": "pvt_tiny", "pvt_large": "pvt_tiny",
    "nat_tiny": "nat_mini", "nat_small": "nat_mini", "nat_base": "nat_mini",
    "psvit_1d_small": "psvit_1d_tiny", "psvit_1d_base": "psvit_1d_tiny",
    "psvit_2d_small": "psvit_2d_tiny", "psvit_2d_base": "psvit_2d_tiny",
}  # fmt: skip


def backbone(name: str, strides: tuple[int, ...] | None = None, **options):
    return build_backbone(BackboneConfig(name=name, **options), strides or STRIDES[LARGER.get(name, name)], (64, 64))


def shapes(network, size: tuple[int, int]) -> list[tuple[int, ...]]:
    levels = zip(network.channels, network.strides, strict=True)
    return [(2, channels, -(-size[0] // stride), -(-size[1] // stride)) for channels, stride in levels]


@pytest.mark.parametrize("name", STRIDES)
def test_maps_are_as_declared_and_gradients_reach_everything(name) -> None:
    torch.manual_seed(0)
    network = backbone(name)
    for size in ((64, 96), (96, 64), (37, 75)):
        maps = network(torch.randn(2, 3, *size))
        assert [tuple(x.shape) for x in maps] == shapes(network, size)
        assert all(x.isfinite().all() for x in maps)
    sum((x * torch.randn_like(x)).sum() for x in maps).backward()
    assert [key for key, p in network.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []


@pytest.mark.slow
@pytest.mark.parametrize("name", LARGER)
def test_larger_ones_declare_what_they_give(name) -> None:
    with torch.device("meta"):
        network = backbone(name)
        for size in ((64, 96), (37, 75)):
            assert [tuple(x.shape) for x in network(torch.zeros(2, 3, *size))] == shapes(network, size)


@pytest.mark.parametrize(
    ("name", "stride", "pool"),
    [(name, strides[-1], "features") for name, strides in STRIDES.items()]
    + [("pvt_tiny", 32, "token"), ("psvit_1d_tiny", 32, "token")],
)
def test_every_one_classifies_and_learns(name, stride, pool) -> None:
    torch.manual_seed(0)
    network = Classifier(backbone(name, (stride,)), 5, pool=pool, norm=True).train()
    scores = network(torch.rand(2, 3, 64, 64))
    assert scores.shape == (2, 5)
    F.cross_entropy(scores, torch.tensor([1, 3])).backward()
    assert [key for key, p in network.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize("name", ["nat_mini", "psvit_2d_tiny", "simple-cnn"])
def test_who_has_no_class_token_says_so(name) -> None:
    with torch.device("meta"):
        body = backbone(name)
    with pytest.raises(DetkitError, match="the backbone has no class token"):
        Classifier(body, 2, pool="token")


def test_stochastic_depth_is_for_those_with_blocks() -> None:
    with torch.device("meta"):
        for name in ("pvt_tiny", "nat_mini", "psvit_1d_tiny", "psvit_2d_tiny"):
            rates = [m.drop_prob for m in backbone(name, drop_path=0.3).modules() if type(m).__name__ == "DropPath"]
            assert (rates[0], rates[-1]) == (0, pytest.approx(0.3))
            assert rates == sorted(rates)
    with pytest.raises(DetkitError, match=r"backbone\.drop_path: lenet5 has no blocks to pass over"):
        backbone("lenet5", drop_path=0.1)


@pytest.mark.parametrize("name", STRIDES)
def test_stages_come_from_the_picture_on_and_leave_nothing_out(name) -> None:
    with torch.device("meta"):
        network = backbone(name)
    inside = [id(p) for stage in network.stages_from_picture() for p in stage.parameters()]
    assert len(inside) == len(set(inside))
    outside = {key for key, p in network.named_parameters() if id(p) not in inside}
    assert all(key.startswith(("pos_embed", "cls_token")) for key in outside)


@pytest.mark.slow
@pytest.mark.parametrize("name", STRIDES)
def test_captured_as_one_graph_and_exported_they_give_the_same(name) -> None:
    torch.manual_seed(0)
    network = backbone(name, STRIDES[name][:2]).eval()  # the first levels hold every kind of layer
    images = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        plain = network(images)
        exported = torch.export.export(network, (images,)).module()(images)
        graph = torch.compile(network, fullgraph=True, backend="aot_eager")(images)
    for expected, *others in zip(plain, exported, graph, strict=True):
        for other in others:
            torch.testing.assert_close(other, expected)


@pytest.mark.parametrize("name", STRIDES)
def test_half_precision_stays_near(name) -> None:
    torch.manual_seed(0)
    network = backbone(name).eval()
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        half = network(images)
    with torch.no_grad():
        full = network(images)
    for a, b in zip(half, full, strict=True):
        assert (a.float() - b).abs().mean() < 0.05 * b.abs().mean()
