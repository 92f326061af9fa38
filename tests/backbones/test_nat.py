"""NAT: neighbourhood attention against a loop over cells, and the paper's sizes."""

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from detkit.backbones import nat
from detkit.backbones.nat import NATBase, NATMini, NATSmall, NATTiny, attend_by_natten, attend_to_neighbours


def loop(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    """Equations 1 to 4, one cell after the other."""
    out = torch.zeros_like(q)
    b, h, w, heads, d = q.shape
    for y in range(h):
        for x in range(w):
            top, left = min(max(y - 3, 0), h - 7), min(max(x - 3, 0), w - 7)
            for head in range(heads):
                keys = k[:, top : top + 7, left : left + 7, head].reshape(b, 49, d)
                values = v[:, top : top + 7, left : left + 7, head].reshape(b, 49, d)
                distances = bias[head, top - y + 6 : top - y + 13, left - x + 6 : left - x + 13].reshape(49)
                scores = (keys @ q[:, y, x, head, :, None])[..., 0] / d**0.5 + distances
                out[:, y, x, head] = (scores.softmax(1)[:, None] @ values)[:, 0]
    return out


def inputs(height: int, width: int) -> list[Tensor]:
    torch.manual_seed(height)
    q, k, v = (torch.randn(2, height, width, 2, 8, dtype=torch.float64) for _ in range(3))
    return [x.requires_grad_() for x in (q, k, v, torch.randn(2, 13, 13, dtype=torch.float64))]


def require_alike(got: torch.Tensor, expected: torch.Tensor, arguments: list[torch.Tensor]) -> None:
    """Fail unless both have the same values and the same gradients."""
    torch.testing.assert_close(got, expected)
    toward = torch.randn_like(got)
    gradients = [torch.autograd.grad(x, arguments, toward) for x in (got, expected)]
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b)


# Each rest of a division by 7, a border on both sides of one tile, and maps of a single tile.
@pytest.mark.parametrize("size", [(7, 7), (8, 9), (10, 11), (12, 13), (14, 7)])
def test_attention_and_its_gradients_are_those_of_a_loop(size) -> None:
    arguments = inputs(*size)
    got, expected = attend_to_neighbours(*arguments), loop(*arguments)
    require_alike(got, expected, arguments)


@pytest.mark.skipif(nat.NATTEN is None, reason="natten before 0.20, whose kernels know the bias, is not installed")
@pytest.mark.parametrize("size", [(7, 7), (10, 18)])
def test_natten_gives_the_same(size) -> None:
    arguments = inputs(*size)
    got, expected = attend_by_natten(*arguments), attend_to_neighbours(*arguments)
    require_alike(got, expected, arguments)


def released(width: int, depths: tuple[int, ...], expansion: int, scaled: bool) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a released checkpoint (classification/nat.py of the authors' repository)."""
    shapes: dict[str, tuple[int, ...]] = {}

    def layer(name: str, *shape: int) -> None:
        shapes.update({f"{name}.weight": shape, f"{name}.bias": shape[:1]})

    layer("patch_embed.proj.0", width // 2, 3, 3, 3)
    layer("patch_embed.proj.1", width, width // 2, 3, 3)
    layer("patch_embed.norm", width)
    for i, depth in enumerate(depths):
        c = width * 2**i
        for block in (f"levels.{i}.blocks.{j}" for j in range(depth)):
            layer(f"{block}.norm1", c)
            layer(f"{block}.norm2", c)
            layer(f"{block}.attn.qkv", 3 * c, c)
            layer(f"{block}.attn.proj", c, c)
            shapes[f"{block}.attn.rpb"] = (c // 32, 13, 13)
            layer(f"{block}.mlp.fc1", expansion * c, c)
            layer(f"{block}.mlp.fc2", c, expansion * c)
            if scaled:
                shapes |= {f"{block}.gamma1": (c,), f"{block}.gamma2": (c,)}
        if i < 3:
            shapes[f"levels.{i}.downsample.reduction.weight"] = (2 * c, c, 3, 3)
            layer(f"levels.{i}.downsample.norm", 2 * c)
    layer("norm", 8 * width)
    layer("head", 1000, 8 * width)
    return shapes


def every_window(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    """What neighbourhood attention costs and no more: 49 keys and values for each cell; for tensors without memory."""
    scores = q.flatten(0, 3)[:, None] @ k.new_empty(q.flatten(0, 3).shape[0], q.shape[-1], 49)
    return (scores @ v.new_empty(len(scores), 49, v.shape[-1])).reshape(q.shape)


@pytest.mark.parametrize(
    ("body", "layout", "parameters", "millions", "gflops"),
    [
        (NATMini, (64, (3, 4, 6, 5), 3, False), 19_984_174, 20, 2.7),
        pytest.param(NATTiny, (64, (3, 4, 18, 5), 3, False), 27_901_582, 28, 4.3, marks=pytest.mark.slow),
        pytest.param(NATSmall, (96, (3, 4, 18, 5), 2, True), 50_743_297, 51, 7.8, marks=pytest.mark.slow),
        pytest.param(NATBase, (128, (3, 4, 18, 5), 2, True), 89_769_652, 90, 13.7, marks=pytest.mark.slow),
    ],
)
def test_names_parameters_and_cost_are_the_papers(monkeypatch, body, layout, parameters, millions, gflops) -> None:
    monkeypatch.setattr(nat, "attend_to_neighbours", every_window)
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        network = body().eval()
        network(torch.zeros(1, 3, 224, 224))
    checkpoint = released(*layout)
    own = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    assert own == {name: shape for name, shape in checkpoint.items() if not name.startswith(("norm.", "head."))}
    total = sum(torch.Size(shape).numel() for shape in checkpoint.values())
    assert total == parameters
    assert round(total / 1e6) == millions
    assert counter.get_total_flops() / 2e9 == pytest.approx(gflops, abs=0.05)  # the paper counts multiply-adds


def test_a_block_adds_attention_and_perceptron_scaled() -> None:
    torch.manual_seed(0)
    block = nat.Block(64, 2, 1e-5, 0).eval()
    block.gamma1.data.normal_()
    block.gamma2.data.normal_()
    x = torch.randn(1, 9, 8, 64)
    q, k, v = block.attn.qkv(block.norm1(x)).reshape(1, 9, 8, 3, 2, 32).unbind(3)
    middle = x + block.gamma1 * block.attn.proj(loop(q, k, v, block.attn.rpb).flatten(3))
    hidden = torch.nn.functional.gelu(block.mlp.fc1(block.norm2(middle)))
    torch.testing.assert_close(block(x), middle + block.gamma2 * block.mlp.fc2(hidden), rtol=1e-4, atol=1e-5)


def test_small_maps_are_padded_with_zeros() -> None:
    layer = nat.NeighbourhoodAttention(32)
    x = torch.randn(1, 3, 9, 32)
    wide = torch.nn.functional.pad(x, (0, 0, 0, 0, 0, 4))
    torch.testing.assert_close(layer(x), layer(wide)[:, :3])


def test_levels_behind_the_coarsest_map_are_left_out() -> None:
    with torch.device("meta"):
        network = NATMini((8,))
    assert (network.channels, len(network.levels), network.levels[-1].downsample) == ((128,), 2, None)
    assert len(network.stages_from_picture()) == 2
    with pytest.raises(ValueError, match="no map of stride 2: this backbone has 4, 8, 16, 32"):
        NATMini((2, 4))
