"""LeNet-5 and the three convolutions: what the paper counts, and each layer by hand."""

import math

import pytest
import torch
from torch import Tensor

from detkit.backbones.lenet import TABLE, LeNet5, Sparse, Subsampling
from detkit.backbones.simple_cnn import SimpleCNN


def test_parameters_and_connections_are_the_papers() -> None:
    network, connections = LeNet5().eval(), {}

    def count(name: str, fan_in: int):
        def hook(module, inputs, output: Tensor) -> None:
            parameters = sum(p.numel() for p in module.parameters())
            places = output.shape[2] * output.shape[3]
            connections[name] = parameters, (parameters if not fan_in else fan_in * output.shape[1]) * places

        return hook

    names = {"C1": "0.0", "S2": "0.2", "C3": "1.0", "S4": "1.2", "C5": "2.0", "F6": "2.2"}
    for name, place in names.items():
        layer = network.stages.get_submodule(place)
        layer.register_forward_hook(count(name, 5 if name in ("S2", "S4") else 0))  # four inputs and a bias
    network(torch.zeros(1, 3, 32, 32))
    # Section II.B: trainable parameters and connections of each layer.
    assert connections == {
        "C1": (156, 122_304), "S2": (12, 5_880), "C3": (1_516, 151_600), "S4": (32, 2_000),
        "C5": (48_120, 48_120), "F6": (10_164, 10_164),
    }  # fmt: skip
    assert sum(p.numel() for p in network.parameters()) == 60_000
    assert sum(made for _, made in connections.values()) == 340_908 - 840  # less the radial basis functions


def test_forward_by_hand() -> None:
    torch.manual_seed(0)
    network = LeNet5().eval()
    (c1, _, s2, _), (c3, _, s4, _), (c5, _, f6, _) = network.stages
    picture = torch.rand(3, 32, 32)
    grey = 0.299 * picture[0] + 0.587 * picture[1] + 0.114 * picture[2]

    def squash(a: float) -> float:
        return 1.7159 * math.tanh(2 / 3 * a)

    def convolve(maps: Tensor, kernels: Tensor, bias: float) -> Tensor:
        side = maps.shape[1] - 4
        return torch.tensor(
            [
                [squash(float((maps[:, y : y + 5, x : x + 5] * kernels).sum() + bias)) for x in range(side)]
                for y in range(side)
            ]
        )

    def subsample(x: Tensor, layer: Subsampling, i: int) -> Tensor:
        four = x[0::2, 0::2] + x[0::2, 1::2] + x[1::2, 0::2] + x[1::2, 1::2]
        return (four * layer.weight[i] + layer.bias[i]).apply_(squash)

    with torch.no_grad():
        first = [convolve(grey[None], c1.weight[i], float(c1.bias[i])) for i in range(6)]
        second = torch.stack([subsample(x, s2, i) for i, x in enumerate(first)])
        third, used = [], 0
        for i, row in enumerate(TABLE):
            seen = second[[int(digit) for digit in row]]
            third.append(convolve(seen, c3.weight[used : used + len(row)], float(c3.bias[i])))
            used += len(row)
        fourth = torch.stack([subsample(x, s4, i) for i, x in enumerate(third)])
        fifth = torch.tensor([squash(float((fourth * c5.weight[i]).sum() + c5.bias[i])) for i in range(120)])
        sixth = torch.tensor([squash(float(f6.weight[i, :, 0, 0] @ fifth + f6.bias[i])) for i in range(84)])
        maps = network(picture[None])
    torch.testing.assert_close(maps[0][0, :, 1:-1, 1:-1], second)
    torch.testing.assert_close(maps[1][0, :, 1:-2, 1:-2], fourth)
    torch.testing.assert_close(maps[2][0, :, 0, 0], sixth)
    assert used == len(c3.weight) == 60


def test_each_cell_of_the_last_map_is_a_lenet_of_its_own() -> None:
    network = LeNet5((32,)).eval()
    picture = torch.rand(1, 3, 64, 96)
    (map_,) = network(picture)
    alone = network(picture[..., 32:64, 64:96])[0]
    torch.testing.assert_close(map_[..., 1:2, 2:3], alone)


def test_first_weights_stay_within_the_papers_bounds() -> None:
    layer = Sparse(TABLE)
    fan_in = torch.tensor([25.0 * len(row) for row in TABLE for _ in row])
    reach = (layer.weight.detach().abs() * fan_in[:, None, None]).flatten(1).max(1).values
    assert reach.max() <= 2.4
    assert reach.min() > 1.5


def test_background_and_ink_are_the_papers() -> None:
    black, white = ((value - LeNet5.mean[0]) / LeNet5.std[0] for value in (0, 1))
    assert (black, white) == pytest.approx((-0.1, 1.175))


def test_three_convolutions() -> None:
    network = SimpleCNN()
    convolutions = [module for module in network.modules() if isinstance(module, torch.nn.Conv2d)]
    assert len(convolutions) == 3
    assert sum(p.numel() for p in network.parameters()) == 27 * 32 + 288 * 64 + 576 * 128 + 2 * (32 + 64 + 128)
    assert len(SimpleCNN((2,)).stages) == 1
    with pytest.raises(ValueError, match="no map of stride 16: this backbone has 2, 4, 8"):
        SimpleCNN((4, 16))
