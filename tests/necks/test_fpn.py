from collections import OrderedDict

import pytest
import torch
from torch import nn
from torchvision.ops import feature_pyramid_network as tv

from detkit.necks.fpn import FPN, pooled_level


@pytest.mark.parametrize("norm", [False, True])
def test_maps_are_torchvisions(norm) -> None:
    torch.manual_seed(0)
    ours = FPN([8, 16, 24], 12, norm).eval()
    theirs = tv.FeaturePyramidNetwork(
        [8, 16, 24], 12, tv.LastLevelMaxPool(), nn.BatchNorm2d if norm else None
    ).eval()  # fmt: skip
    for p in (*ours.parameters(), *(b for b in ours.buffers() if b.ndim)):
        p.data.uniform_(0.1, 0.5)
    names = {"lateral": "inner_blocks", "output": "layer_blocks"}
    state = {}
    for name, tensor in ours.state_dict().items():
        part, _, rest = name.partition(".")
        state[f"{names[part]}.{rest}"] = tensor
    theirs.load_state_dict(state)
    maps = [torch.randn(2, c, h, w) for c, h, w in ((8, 13, 10), (16, 7, 5), (24, 4, 3))]
    found = ours(maps)
    expected = theirs(OrderedDict(enumerate(maps)))
    for x, y in zip([*found, pooled_level(found[-1])], expected.values(), strict=True):
        torch.testing.assert_close(x, y)


def test_the_start_is_torchvisions() -> None:
    torch.manual_seed(0)
    ours = FPN([64], 64)
    for conv, fan_in in ((ours.lateral[0][0], 64), (ours.output[0][0], 64 * 9)):
        assert not conv.bias.any()
        bound = (3 / fan_in) ** 0.5
        assert 0.95 * bound < conv.weight.abs().max() <= bound
