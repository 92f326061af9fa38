import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from detkit.backbones import BackboneConfig, build_backbone
from detkit.backbones.darknet import Darknet19, Darknet53
from detkit.classify.classifier import Classifier
from detkit.errors import DetkitError


def giga_multiply_adds(network, size: int) -> float:
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        network(torch.zeros(1, 3, size, size))
    return counter.get_total_flops() / 2e9


def test_darknet53_is_the_papers() -> None:
    with torch.device("meta"):
        network = Darknet53(strides=(32,)).eval()
    assert len(list(network.darknet_layers())) == 52  # the 53rd is the classifier's
    # 1000 classes more on 1024 channels make the 41.6 million of the released weights.
    assert sum(p.numel() for p in network.parameters()) == 40_584_928
    # Table 2 counts 18.7 billion operations, two a multiply-add, at 256 × 256.
    assert 2 * giga_multiply_adds(network, 256) == pytest.approx(18.6, abs=0.15)


def test_any_strides_are_given_finest_first() -> None:
    network = Darknet53(strides=(32, 4))
    assert network.strides == (4, 32)
    assert network.channels == (128, 1024)
    assert [m.shape[-1] for m in network.eval()(torch.rand(1, 3, 64, 64))] == [16, 2]


@pytest.mark.parametrize("name", ["extraction", "darknet_reference", "darknet19", "darknet53", "darknet_tiny"])
def test_nothing_is_built_that_no_map_needs(name: str) -> None:
    network = build_backbone(BackboneConfig(name=name), (4, 8)).train()
    fine, coarse = network(torch.rand(2, 3, 64, 64))
    assert (fine.shape[-1], coarse.shape[-1]) == (16, 8)
    coarse.sum().backward()
    assert all(p.grad is not None for p in network.parameters())


def test_a_stride_that_is_not_there_is_named() -> None:
    with pytest.raises(DetkitError, match="darknet53 has no map of stride 64"):
        build_backbone(BackboneConfig(name="darknet53"), (32, 64))


def test_an_unknown_name_shows_the_nearest() -> None:
    with pytest.raises(DetkitError, match="did you mean 'darknet53'"):
        build_backbone(BackboneConfig(name="darknet35"), (32,))


def test_darknet19_is_the_papers() -> None:
    with torch.device("meta"):
        network = Classifier(Darknet19(strides=(32,)), 1000, pool="scores").eval()
    assert len(list(network.darknet_layers())) == 19
    assert sum(p.numel() for p in network.parameters()) == 20_842_376  # 20.8 million
    # Table 6 counts 5.58 billion operations, two a multiply-add, at 224 × 224.
    assert 2 * giga_multiply_adds(network, 224) == pytest.approx(5.58, abs=0.005)


def test_a_classifier_averages_the_scores_of_all_places() -> None:
    network = Classifier(Darknet19(strides=(32,)), 7, pool="scores").eval()
    pictures = torch.rand(2, 3, 64, 96)
    (features,) = network.backbone(pictures)
    assert network(pictures).shape == (2, 7)
    torch.testing.assert_close(network(pictures), network.head(features.mean((2, 3), keepdim=True))[..., 0, 0])
