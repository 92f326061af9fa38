"""The neck of YOLOv2: the paper's and the released shapes, Darknet's order of cells, and the order of its weights."""

import pytest
import torch

from detkit.backbones.layers import ConvUnit
from detkit.necks.passthrough import Passthrough, PassthroughNeck


@pytest.mark.parametrize(("squeeze", "channels"), [(None, 2048), (64, 256)])
def test_both_forms_have_their_published_shapes(squeeze: int | None, channels: int) -> None:
    passthrough = Passthrough(512, squeeze).eval()
    assert passthrough.channels == channels
    assert passthrough(torch.rand(1, 512, 26, 26)).shape == (1, channels, 13, 13)
    assert sum(p.numel() for p in passthrough.parameters()) == (512 * 64 + 2 * 64 if squeeze else 0)


def test_cells_are_laid_down_as_darknet_does() -> None:
    # By Darknet's rule for one picture: position (k, j, i) reads k2 = k mod C/4, o = k div C/4, and in there the flat
    # index i·2 + o mod 2 + 2w·(j·2 + o div 2 + 2h·k2) of a buffer [C/4, 2h, 2w].
    c, h, w = 8, 6, 4  # of the fine map
    x = torch.arange(c * h * w, dtype=torch.float32)
    expected = torch.empty(c, h, w)
    for k in range(c):
        for j in range(h):
            for i in range(w):
                k2, o = k % (c // 4), k // (c // 4)
                expected[k, j, i] = x[i * 2 + o % 2 + w * 2 * (j * 2 + o // 2 + h * 2 * k2)]
    found = Passthrough(c, None)(x.view(1, c, h, w))
    assert torch.equal(found, expected.view(1, 4 * c, h // 2, w // 2))
    assert not torch.equal(found, torch.nn.functional.pixel_unshuffle(x.view(1, c, h, w), 2))


def test_the_fine_map_joins_first_and_before_the_last_convolution() -> None:
    neck = PassthroughNeck((8, 12), width=16, depth=3, squeeze=4).eval()
    fine, coarse = torch.rand(2, 8, 6, 4), torch.rand(2, 12, 3, 2)
    out = neck([fine, coarse])
    assert out.shape == (2, neck.channels, 3, 2)
    joined = torch.cat([neck.passthrough(fine), neck.coarse(coarse)], 1)
    assert joined.shape[1] == 16 + 16
    assert torch.equal(out, neck.last(joined))


@pytest.mark.parametrize(
    ("channels", "depth", "kernels"),
    [((512, 1024), 3, [3, 3, 1, 3]), ((1024,), 1, [3]), ((1024,), 0, []), ((512, 1024), 1, [1, 3])],
)
def test_layers_come_in_the_order_of_the_released_files(channels, depth, kernels) -> None:
    with torch.device("meta"):
        neck = PassthroughNeck(channels, depth=depth)
    layers = list(neck.darknet_layers())
    assert [unit.conv.kernel_size[0] for unit in layers] == kernels
    assert len(layers) == len([m for m in neck.modules() if isinstance(m, ConvUnit)])
    assert neck.channels == 1024


def test_every_parameter_gets_a_gradient() -> None:
    neck = PassthroughNeck((8, 12), width=16, squeeze=4).train()
    neck([torch.rand(2, 8, 6, 4), torch.rand(2, 12, 3, 2)]).square().sum().backward()
    assert [name for name, p in neck.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_a_fine_map_needs_a_convolution_to_join_before() -> None:
    with pytest.raises(ValueError, match="the depth is 0"):
        PassthroughNeck((8, 12), depth=0)
