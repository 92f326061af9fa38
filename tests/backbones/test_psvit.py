"""PSViT: shared attention maps, pooled tokens, and what the layouts here cost."""

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from detkit.backbones import psvit
from detkit.backbones.psvit import PSViT1DBase, PSViT1DSmall, PSViT1DTiny, PSViT2DBase, PSViT2DSmall, PSViT2DTiny


def test_the_second_layer_takes_the_attention_map_of_the_first() -> None:
    torch.manual_seed(0)
    stage = psvit.Stage("AS", 64, 2, (0, 0)).eval()
    first, second = stage.layers
    x = torch.randn(2, 9, 64)

    def split(y: Tensor) -> Tensor:
        return y.reshape(2, 9, 2, 32).transpose(1, 2)

    def finish(layer, y: Tensor, mixed: Tensor) -> Tensor:
        y = y + layer.attn.proj(mixed.transpose(1, 2).reshape(2, 9, 64))
        return y + layer.mlp.fc2(torch.nn.functional.gelu(layer.mlp.fc1(layer.norm2(y))))

    y = first.norm1(x)
    q, k = first.attn.qk(y).chunk(2, -1)
    attention_map = (split(q) @ split(k).transpose(2, 3) / 32**0.5).softmax(-1)
    middle = finish(first, x, attention_map @ split(first.attn.v(y)))
    expected = finish(second, middle, attention_map @ split(second.attn.v(second.norm1(middle))))
    assert second.attn.qk is None
    torch.testing.assert_close(stage(x), expected, rtol=1e-4, atol=1e-5)


def test_tokens_are_pooled_in_a_row_and_as_a_map() -> None:
    row, plane = psvit.Pool1D(3), psvit.Pool2D(3)
    x = torch.randn(1, 3, 4, 6)
    tokens = x.flatten(2).transpose(1, 2)
    mixed = torch.zeros(24, 3)
    for i in range(24):
        for j in range(3):
            if 0 <= i + j - 1 < 24:
                mixed[i] += row.conv.weight[:, :, j] @ tokens[0, i + j - 1]
    expected = (mixed + row.conv.bias).reshape(12, 2, 3).amax(1)
    torch.testing.assert_close(row(tokens)[0], expected)
    blocks = plane.conv(x).reshape(1, 6, 2, 2, 3, 2).amax((3, 5))
    torch.testing.assert_close(plane(x), blocks)


def test_rows_then_columns_are_halved() -> None:
    """With a convolution that passes tokens on and layers that add nothing, 1D pooling is that of 2 × 2 cells."""
    network = PSViT1DTiny().eval()
    for name, parameter in network.named_parameters():
        if name.endswith(("attn.proj.weight", "fc2.weight", "conv.weight")):
            parameter.data.zero_()
        if name.endswith("conv.weight"):
            parameter.data[:, :, 1] = torch.eye(192)
        if name.endswith("bias"):
            parameter.data.zero_()
    fine, coarse = network(torch.randn(1, 3, 64, 96))
    torch.testing.assert_close(coarse, torch.nn.functional.max_pool2d(fine, 2))


def test_other_strides_come_from_the_last_map() -> None:
    network = PSViT1DTiny((8, 16, 32)).eval()
    images = torch.randn(1, 3, 64, 96)
    last = PSViT1DTiny((32,)).eval()
    last.load_state_dict({key: value for key, value in network.state_dict().items() if "pyramid" not in key})
    for got, expected in zip(network(images), network.pyramid(last(images)[0]), strict=True):
        torch.testing.assert_close(got, expected)
    only = PSViT1DTiny((16,))
    assert (len(only.stages), only.class_tokens) == (1, 0)


@pytest.mark.parametrize(
    ("body", "parameters", "gflops"),
    [
        (PSViT1DTiny, 8_563_392, 1.26),  # DeiT-Ti has 1.26
        pytest.param(PSViT1DSmall, 33_789_312, 4.66, marks=pytest.mark.slow),  # DeiT-S 4.6
        pytest.param(PSViT1DBase, 134_228_736, 17.91, marks=pytest.mark.slow),  # DeiT-B 17.6
        (PSViT2DTiny, 9_266_592, 1.37),
        pytest.param(PSViT2DSmall, 36_817_728, 4.85, marks=pytest.mark.slow),
        pytest.param(PSViT2DBase, 146_773_632, 18.15, marks=pytest.mark.slow),
    ],
)
def test_parameters_and_cost(body, parameters, gflops) -> None:
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        network = body().eval()
        network(torch.zeros(1, 3, 224, 224))
    assert sum(p.numel() for p in network.parameters()) == parameters
    assert counter.get_total_flops() / 2e9 == pytest.approx(gflops, abs=0.005)
