"""PVT v1: the paper's sizes, the names and the arithmetic of the released code, positions at other sizes."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from detkit.backbones.pvt import PVTLarge, PVTMedium, PVTSmall, PVTTiny
from detkit.classify.classifier import Classifier

WIDTHS, HEADS, RATIOS, REDUCTIONS = (64, 128, 320, 512), (1, 2, 5, 8), (8, 8, 4, 4), (8, 4, 2, 1)


def released(depths: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a released checkpoint (classification/pvt.py of github.com/whai362/PVT)."""
    shapes: dict[str, tuple[int, ...]] = {"cls_token": (1, 1, 512)}

    def layer(name: str, *shape: int) -> None:
        shapes.update({f"{name}.weight": shape, f"{name}.bias": shape[:1]})

    for i, (c, before, side) in enumerate(zip(WIDTHS, (3, *WIDTHS), (56, 28, 14, 7), strict=False), 1):
        patch = 4 if i == 1 else 2
        layer(f"patch_embed{i}.proj", c, before, patch, patch)
        layer(f"patch_embed{i}.norm", c)
        shapes[f"pos_embed{i}"] = (1, side**2 + (i == 4), c)
        for j in range(depths[i - 1]):
            block = f"block{i}.{j}"
            layer(f"{block}.norm1", c)
            layer(f"{block}.norm2", c)
            layer(f"{block}.attn.q", c, c)
            layer(f"{block}.attn.kv", 2 * c, c)
            layer(f"{block}.attn.proj", c, c)
            if (r := REDUCTIONS[i - 1]) > 1:
                layer(f"{block}.attn.sr", c, c, r, r)
                layer(f"{block}.attn.norm", c)
            layer(f"{block}.mlp.fc1", RATIOS[i - 1] * c, c)
            layer(f"{block}.mlp.fc2", c, RATIOS[i - 1] * c)
    layer("norm", 512)
    layer("head", 1000, 512)
    return shapes


@pytest.mark.parametrize(
    ("body", "depths", "parameters", "millions", "gflops"),
    [
        (PVTTiny, (2, 2, 2, 2), 13_229_288, 13.2, 1.9),
        pytest.param(PVTSmall, (3, 4, 6, 3), 24_485_864, 24.5, 3.8, marks=pytest.mark.slow),
        pytest.param(PVTMedium, (3, 4, 18, 3), 44_208_104, 44.2, 6.7, marks=pytest.mark.slow),
        pytest.param(PVTLarge, (3, 8, 27, 3), 61_369_320, 61.4, 9.8, marks=pytest.mark.slow),
    ],
)
def test_names_parameters_and_cost_are_the_papers(body, depths, parameters, millions, gflops) -> None:
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        network = body().eval()
        network(torch.zeros(1, 3, 224, 224))
    checkpoint = released(depths)
    own = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    assert own == {name: shape for name, shape in checkpoint.items() if not name.startswith(("norm.", "head."))}
    total = sum(torch.Size(shape).numel() for shape in checkpoint.values())
    assert total == parameters
    assert round(total / 1e6, 1) == millions
    assert counter.get_total_flops() / 2e9 == pytest.approx(gflops, abs=0.05)  # the paper counts multiply-adds


def test_a_released_checkpoint_loads_strictly_as_a_classifier() -> None:
    with torch.device("meta"):
        network = Classifier(PVTTiny((32,)), 1000, pool="token", norm=True)
        checkpoint = {name: torch.empty(shape) for name, shape in released((2, 2, 2, 2)).items()}
    named = {name if name.startswith(("norm.", "head.")) else f"backbone.{name}": x for name, x in checkpoint.items()}
    own = {name: x for name, x in network.state_dict().items() if not name.startswith("normalize.")}
    assert {name: x.shape for name, x in named.items()} == {name: x.shape for name, x in own.items()}
    assert set(network.backbone.taken_from(checkpoint)) == set(network.backbone.state_dict())


def literal(network: PVTTiny, images: Tensor) -> tuple[list[Tensor], Tensor]:
    """The forward of the released code, with the softmax written out, for pictures of whole cells."""
    state, maps, x = network.state_dict(), [], images

    def linear(name: str, y: Tensor) -> Tensor:
        return y @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    def norm(name: str, y: Tensor, eps: float) -> Tensor:
        y = (y - y.mean(-1, keepdim=True)) / (y.var(-1, unbiased=False, keepdim=True) + eps).sqrt()
        return y * state[f"{name}.weight"] + state[f"{name}.bias"]

    for i in range(1, 5):
        patch = 4 if i == 1 else 2
        x = F.conv2d(x, state[f"patch_embed{i}.proj.weight"], state[f"patch_embed{i}.proj.bias"], stride=patch)
        (h, w), side = x.shape[2:], 112 // 2**i
        x = norm(f"patch_embed{i}.norm", x.flatten(2).transpose(1, 2), 1e-5)
        table = state[f"pos_embed{i}"]
        if (h, w) != (side, side):
            grid = table[:, -(side**2) :].reshape(1, side, side, -1).permute(0, 3, 1, 2)
            cells = F.interpolate(grid, size=(h, w), mode="bilinear").reshape(1, -1, h * w).permute(0, 2, 1)
            table = torch.cat([table[:, : -(side**2)], cells], 1)
        if i == 4:
            x = torch.cat([state["cls_token"].expand(len(x), -1, -1), x], 1)
        x = x + table
        for name in sorted(
            {key.rsplit(".", 3)[0] for key in state if key.startswith(f"block{i}.") and "attn.q" in key}
        ):
            y = norm(f"{name}.norm1", x, 1e-6)
            source, r = y, REDUCTIONS[i - 1]
            if r > 1:
                small = y.transpose(1, 2).reshape(len(y), -1, h, w)
                small = F.conv2d(small, state[f"{name}.attn.sr.weight"], state[f"{name}.attn.sr.bias"], stride=r)
                source = norm(f"{name}.attn.norm", small.flatten(2).transpose(1, 2), 1e-5)
            q, (k, v) = linear(f"{name}.attn.q", y), linear(f"{name}.attn.kv", source).chunk(2, -1)
            heads = []
            for head in range(HEADS[i - 1]):
                part = slice(64 * head, 64 * (head + 1))
                weights = (q[..., part] @ k[..., part].transpose(1, 2) / 8).softmax(-1)
                heads.append(weights @ v[..., part])
            x = x + linear(f"{name}.attn.proj", torch.cat(heads, -1))
            hidden = F.gelu(linear(f"{name}.mlp.fc1", norm(f"{name}.norm2", x, 1e-6)))
            x = x + linear(f"{name}.mlp.fc2", hidden)
        token, x = x[:, : -h * w], x[:, -h * w :].transpose(1, 2).reshape(len(x), -1, h, w)
        maps.append(x)
    return maps, token


@pytest.mark.parametrize("size", [(224, 224), (64, 160)])
def test_forward_is_the_released_one(size) -> None:
    torch.manual_seed(0)
    network = PVTTiny().eval()
    for name, parameter in network.named_parameters():  # so that each bias and norm matters
        parameter.data += 0.05 * torch.randn_like(parameter) if name.endswith(("bias", "norm.weight")) else 0
    images = torch.randn(1, 3, *size)
    with torch.no_grad():
        maps, token = literal(network, images)
        for got, expected in zip(network(images), maps, strict=True):
            torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(network.tokens(images), token, rtol=1e-4, atol=1e-4)


def test_stages_behind_the_coarsest_map_are_left_out() -> None:
    network = PVTTiny((8, 4))
    assert (network.strides, network.channels, network.class_tokens) == ((4, 8), (64, 128), 0)
    assert not any(name.startswith(("block3", "cls_token")) for name in network.state_dict())
    with pytest.raises(ValueError, match="no map of stride 64: this backbone has 4, 8, 16, 32"):
        PVTTiny((32, 64))


def test_stochastic_depth_grows_to_the_last_block() -> None:
    with torch.device("meta"):
        network = PVTTiny(drop_path=0.7)
    blocks = [block for i in range(1, 5) for block in network.get_submodule(f"block{i}")]
    assert [block.drop_path.drop_prob for block in blocks] == pytest.approx([0.1 * i for i in range(8)])
