"""Simple feature pyramid: shapes, the paper's layers, and what it refuses."""

import pytest
import torch
from torch import nn

from detkit.necks.simple_pyramid import SimpleFeaturePyramid


@pytest.mark.parametrize(("stride_in", "size"), [(16, 6), (8, 12), (32, 3)])
def test_every_stride_gets_its_size_and_channels(stride_in: int, size: int) -> None:
    pyramid = SimpleFeaturePyramid(64, stride_in, (4, 8, 16, 32), 24)
    maps = pyramid(torch.rand(2, 64, size, size + stride_in % 3))
    cells = [size * stride_in // stride for stride in (4, 8, 16, 32)]
    assert [x.shape[1] for x in maps] == [24] * 4 == list(pyramid.channels)
    assert [x.shape[2] for x in maps] == cells


def test_layers_are_those_of_the_paper() -> None:
    # Appendix A.2: 1/4 by two deconvolutions with layer norm and GELU between; then 1×1 and 3×3, each with layer norm.
    pyramid = SimpleFeaturePyramid(64, 16, (4, 8, 16, 32))
    tail = ["Conv2d", "LayerNorm2d", "Conv2d", "LayerNorm2d"]
    assert [[type(layer).__name__ for layer in level] for level in pyramid.levels] == [
        ["ConvTranspose2d", "LayerNorm2d", "GELU", "ConvTranspose2d", *tail],
        ["ConvTranspose2d", *tail],
        tail,
        ["MaxPool2d", *tail],
    ]
    widths = [layer.out_channels for layer in pyramid.levels[0] if isinstance(layer, nn.ConvTranspose2d)]
    assert widths == [32, 16]


def test_maps_are_normalised_over_channels() -> None:
    for x in SimpleFeaturePyramid(32, 16, (8, 16, 32), 48)(torch.rand(1, 32, 4, 4)):
        torch.testing.assert_close(x.mean(1), torch.zeros_like(x[:, 0]), atol=1e-5, rtol=0)


def test_every_parameter_gets_a_gradient() -> None:
    pyramid = SimpleFeaturePyramid(32, 16, (4, 8, 16, 32), 8)
    sum(x.square().sum() for x in pyramid(torch.rand(2, 32, 4, 4))).backward()
    assert [name for name, p in pyramid.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize(("stride_in", "stride"), [(14, 16), (16, 14), (7, 8), (16, 48), (48, 16)])
def test_ratio_that_is_no_power_of_two_is_refused(stride_in: int, stride: int) -> None:
    with pytest.raises(ValueError, match=f"no map of stride {stride} from one of stride {stride_in}"):
        SimpleFeaturePyramid(32, stride_in, (stride,))
