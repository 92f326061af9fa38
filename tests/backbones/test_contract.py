"""What holds for every backbone that has a name: maps, scores, gradients and stages, and the same when compiled.

The smallest of each family computes with numbers; of the others only shapes are looked at.
"""

from collections.abc import Iterable, Iterator

import pytest
import torch
from torch import Tensor, nn

from detkit.backbones import BACKBONES, BackboneConfig, build_backbone
from detkit.backbones.base import Backbone
from detkit.backbones.timm import Unfilled
from detkit.backbones.whole import build_whole
from detkit.backbones.zoo import FAMILIES, ZOO
from detkit.classify.classifier import Classifier
from detkit.errors import DetkitError
from detkit.models import read_table

PARAMETERS = {entry.name: entry.parameters for entry in read_table() if entry.kind == "backbone"}
NAMES = [*BACKBONES, *ZOO]
SIZES = (64, 96), (75, 67)
CLASSES = 5

STAGES = {
    "DarknetBackbone": 6, "LeNet5": 3, "MobileNetV3Large": 5, "NAT": 4, "PSViT1D": 3, "PSViT2D": 3, "PVT": 4,
    "SimpleCNN": 3,
    "AlexNet": 4, "VGG": 6, "GoogLeNet": 5, "ResNet": 4, "DenseNet": 4, "EfficientNet": 7, "RegNet": 4, "ConvNeXt": 4,
    "ViT": 12, "DeiT": 12, "PVT v2": 4, "Swin": 4, "Swin V2": 4, "XCiT": 12, "VOLO": 5, "TNT": 12, "CoAtNet": 4,
    "PoolFormer": 4,
}  # fmt: skip
"""How many of the smallest of each family can be frozen one after the other."""


def family(name: str) -> str:
    """The paper that a network of the zoo is of; of detkit's own, the class that all of its sizes share."""
    for title, found in FAMILIES.items():
        if name in found.models:
            return title
    own = BACKBONES[name]
    return (own if own.__base__ is Backbone else own.__base__).__name__


SMALLEST = {family(name): name for name in sorted(NAMES, key=PARAMETERS.__getitem__, reverse=True)}
FAST = {
    "simple-cnn", "lenet5", "darknet_tiny", "mobilenet_v3_large", "pvt_tiny", "psvit_1d_tiny", "psvit_2d_tiny",
    "googlenet", "resnet18", "regnetx_200mf", "efficientnet_b0", "vit_ti", "pvt_v2_b0",
}  # fmt: skip
COMPILED_FAST = {"simple-cnn", "lenet5", "darknet_tiny", "resnet18", "psvit_2d_tiny"}


def slow_but(fast: Iterable[str], names: Iterable[str]) -> list[object]:
    return [pytest.param(name, marks=() if name in fast else pytest.mark.slow) for name in sorted(names)]


def pyramid(name: str) -> Backbone:
    with torch.device("meta"), Unfilled():
        strides = BACKBONES[name]().strides if name in BACKBONES else (8, 16, 32)
    return build_backbone(BackboneConfig(name=name), strides, SIZES[0])


def classifiers(name: str, size_hw: tuple[int, int]) -> Iterator[Classifier]:
    """With the network's own end, or a linear layer on the last map of one that has none; and on its class tokens."""
    config = BackboneConfig(name=name)
    if name in ZOO:
        yield Classifier(build_whole(config, CLASSES, size_hw), CLASSES, pool="own")
        coarsest = max(16, 32 * name.endswith("p32"))
        body = build_backbone(config, (coarsest,), size_hw)
    else:
        body = build_backbone(config, pyramid(name).strides[-1:])
        yield Classifier(body, CLASSES, norm=True)
    if body.class_tokens:
        yield Classifier(body, CLASSES, pool="token", norm=True)


def require_declared(backbone: Backbone, maps: list[Tensor], size_hw: tuple[int, int]) -> None:
    cells = [tuple(-(-side // stride) for side in size_hw) for stride in backbone.strides]
    assert [tuple(x.shape) for x in maps] == [(2, c, *hw) for c, hw in zip(backbone.channels, cells, strict=True)]


def require_gradients(network: nn.Module, outputs: list[Tensor]) -> None:
    """Fail where a parameter that learns has no gradient, or one that is no number."""
    sum((x * torch.randn_like(x)).sum() for x in outputs).backward()
    learned = {key: p.grad for key, p in network.named_parameters() if p.requires_grad}
    assert [key for key, grad in learned.items() if grad is None or not grad.isfinite().all()] == []
    network.zero_grad()


def test_every_family_is_here() -> None:
    assert SMALLEST.keys() == STAGES.keys()
    assert PARAMETERS.keys() == set(NAMES)


@pytest.mark.parametrize("name", slow_but(FAST, SMALLEST.values()))
def test_maps_are_as_declared_and_gradients_reach_everything(name: str) -> None:
    torch.manual_seed(0)
    backbone = pyramid(name).train()
    for size in SIZES:
        maps = backbone(torch.rand(2, 3, *size))
        require_declared(backbone, maps, size)
        assert all(x.isfinite().all() for x in maps)
        require_gradients(backbone, maps)


@pytest.mark.parametrize("name", slow_but(FAST, SMALLEST.values()))
def test_scores_are_numbers_and_gradients_reach_everything(name: str) -> None:
    torch.manual_seed(0)
    for size in SIZES[: 1 if family(name) == "CoAtNet" else 2]:
        for network in classifiers(name, size):
            scores, auxiliary = network.train().with_auxiliary(torch.rand(2, 3, *size))
            assert scores.shape[::2] == (2, CLASSES)
            assert scores.isfinite().all()
            require_gradients(network, [scores, auxiliary])


def test_the_sizes_that_a_classifier_does_not_take_are_said() -> None:
    for name in ("coatnet_0", "alexnet"):
        with pytest.raises(DetkitError, match=rf"backbone\.name: .*{name}.* cannot classify pictures of 75×61 \("):
            build_whole(BackboneConfig(name=name), CLASSES, (75, 61))


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(NAMES) - set(SMALLEST.values())))
def test_larger_ones_give_what_they_declare(name: str) -> None:
    """As pyramids, of the odd size; `tests/test_models.py` lets all run as classifiers of their own."""
    with torch.device("meta"), Unfilled():
        backbone = pyramid(name).eval()
    with torch.device("meta"), torch.no_grad():
        require_declared(backbone, backbone(torch.empty(2, 3, *SIZES[1])), SIZES[1])


@pytest.mark.parametrize("name", slow_but(FAST, SMALLEST.values()))
def test_stages_leave_nothing_out(name: str) -> None:
    with torch.device("meta"), Unfilled():
        backbone = pyramid(name)
    stages = backbone.stages_from_picture()
    assert len(stages) == STAGES[family(name)]
    inside = [id(p) for stage in stages for p in stage.parameters()]
    assert len(inside) == len(set(inside))
    assert set(inside) == {id(p) for p in backbone.parameters()}


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("name", slow_but(COMPILED_FAST, SMALLEST.values()))
def test_captured_as_one_graph_each_gives_the_same(name: str) -> None:
    """As a pyramid, without the compiler's code in C++; some as classifiers, and with what it makes of the backward."""
    torch.manual_seed(0)
    whole = name in COMPILED_FAST
    backend = "aot_eager" if whole else "eager"
    for network in (pyramid(name), *(classifiers(name, SIZES[0]) if whole else ())):
        network.eval()
        images = torch.rand(1, 3, *SIZES[0])
        learned = [p for p in network.parameters() if p.requires_grad]
        results = []
        for forward in (network, torch.compile(network, fullgraph=True, backend=backend)):
            outputs = forward(images)
            total = sum(x.square().mean() for x in outputs)
            results.append((outputs, torch.autograd.grad(total, learned, materialize_grads=True)))
        for got, expected in zip(*results, strict=True):
            torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
