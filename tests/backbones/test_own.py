"""What the networks that are written here keep beside the contract of all: attention's kernel, export, precision."""

from unittest.mock import Mock, patch

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


def backbone(name: str, strides: tuple[int, ...] | None = None, **options):
    return build_backbone(BackboneConfig(name=name, **options), strides or STRIDES[name], (64, 64))


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


@pytest.mark.parametrize(
    ("name", "layers"), [("pvt_tiny", 8), ("nat_mini", 18), ("psvit_1d_tiny", 20), ("psvit_2d_tiny", 10)]
)
def test_attention_goes_through_one_kernel(name, layers) -> None:
    """A call of PyTorch's for each layer, and no softmax beside them."""
    kernel, softmax = F.scaled_dot_product_attention, Mock(side_effect=AssertionError)
    with torch.device("meta"), patch.object(F, "scaled_dot_product_attention", wraps=kernel) as attend:
        network = backbone(name)
        with patch.multiple(torch.Tensor, softmax=softmax), patch.multiple(F, softmax=softmax):
            network(torch.zeros(1, 3, 64, 64))
    assert attend.call_count == layers


@pytest.mark.slow
@pytest.mark.parametrize("name", STRIDES)
def test_exported_they_give_the_same(name) -> None:
    torch.manual_seed(0)
    network = backbone(name, STRIDES[name][:2]).eval()  # the first levels hold every kind of layer
    images = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        exported = torch.export.export(network, (images,)).module()(images)
        torch.testing.assert_close(exported, network(images))


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
