from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from detkit.backbones.layers import ConvUnit
from detkit.backbones.timm import TimmBackbone
from detkit.errors import DetkitError
from detkit.inference import Recorded, compile_forward, fold_batch_norm, require_precision
from detkit.model import load

CPU = torch.device("cpu")


def unsettle(network: nn.Module) -> nn.Module:
    """Give batch norms statistics and weights that change something."""
    torch.manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-0.5, 0.5)
            module.running_var.uniform_(0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
    return network.eval()


def norms(network: nn.Module) -> int:
    return sum(isinstance(module, nn.BatchNorm2d) for module in network.modules())


# Left are those that read a sum, a pooled or an input map, as before a residual block and in a skipped branch.
@pytest.mark.parametrize(
    ("name", "found", "left"),
    [
        ("fasternet_t0", 17, 0),
        ("resnet18", 20, 0),
        ("mobilenetv3_small_050", 34, 0),  # activations inside of its batch norms, squeeze and excitation
        ("resnetv2_18", 16, 8),
        ("repvgg_a0", 61, 17),
    ],
)
def test_folding_changes_no_output_of_timms_models(name: str, found: int, left: int) -> None:
    network = unsettle(TimmBackbone(name, strides=(8, 16, 32), size_hw=(64, 96)))
    images = torch.rand(2, 3, 64, 96)
    assert norms(network) == found
    with torch.no_grad():
        before = network(images)
        fold_batch_norm(network)
        after = network(images)
    assert norms(network) == left
    for x, y in zip(after, before, strict=True):
        assert float((x - y).abs().max() / y.abs().max()) < 1e-5


@torch.no_grad()
def test_folding_changes_no_output_of_darknets_units() -> None:
    network = unsettle(nn.Sequential(ConvUnit(3, 8, 3), ConvUnit(8, 8, 1, activation="mish")))
    images = torch.rand(1, 3, 16, 16)
    before = network(images)
    fold_batch_norm(network)
    assert norms(network) == 0
    assert float((network(images) - before).abs().max() / before.abs().max()) < 1e-5


class Readers(nn.Module):
    """What a batch norm reads is also read by another, or a convolution runs twice."""

    example = torch.zeros(1, 3, 8, 8)

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.conv1, self.bn1, self.bn2 = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> list[Tensor]:
        y = self.conv1(x)
        if self.kind == "sum":
            return [self.bn1(y) + y]
        if self.kind == "output":
            return [y, self.bn1(y)]
        if self.kind == "map":
            return [2 * y, self.bn1(y)]
        if self.kind == "shared":
            return [self.bn1(y) + self.bn2(self.conv1(2 * x))]
        return [self.bn2(self.bn1(y))]


@pytest.mark.parametrize(("kind", "left"), [("sum", 2), ("output", 2), ("map", 2), ("shared", 2), ("chain", 1)])
@torch.no_grad()
def test_what_others_read_is_not_folded(kind: str, left: int) -> None:
    network = unsettle(Readers(kind))
    images = torch.rand(1, 3, 8, 8)
    before = network(images)
    fold_batch_norm(network)
    assert norms(network) == left
    torch.testing.assert_close(network(images), before)


@torch.no_grad()
def test_what_a_hook_reads_is_not_folded() -> None:
    network = unsettle(Readers("chain"))
    seen: list[Tensor] = []
    network.bn1.register_forward_hook(lambda module, args, out: seen.append(out))
    fold_batch_norm(network)
    network(torch.rand(1, 3, 8, 8))
    assert len(seen) == 2  # once to see how the layers connect


def test_the_model_that_comes_with_detkit_has_no_batch_norm_left() -> None:
    assert norms(load(device="cpu").detector) == 0


def test_a_model_and_its_pictures_lie_channels_last() -> None:
    model = load(device="cpu")
    seen: list[Tensor] = []
    for module in model.detector.modules():
        if isinstance(module, nn.Conv2d) and module.kernel_size != (1, 1):
            assert module.weight.is_contiguous(memory_format=torch.channels_last)
            module.register_forward_hook(lambda module, args, out: seen.append(out))
    model.predict([np.zeros((40, 60, 3), np.uint8)])
    assert seen
    assert all(out.is_contiguous(memory_format=torch.channels_last) for out in seen)


def test_a_precision_that_the_device_does_not_have(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DetkitError, match="--precision fp16: needs a GPU; on the CPU use bf16 or fp32"):
        load(device="cpu", precision="fp16")
    cuda = torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla T4")
    for capability, fits in (((7, 5), False), ((8, 0), True)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, found=capability: found)
        require_precision("fp16", cuda)
        if fits:
            require_precision("bf16", cuda)
        else:
            with pytest.raises(DetkitError, match="--precision bf16: Tesla T4 does not have it; use fp16 or fp32"):
                require_precision("bf16", cuda)


@pytest.mark.slow
def test_without_a_compiler_nothing_is_compiled() -> None:
    class Double(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return 2 * images

    network: Any = Double()
    compile_forward(network, one_size=True)
    with (
        torch._inductor.config.patch({"cpp.cxx": ("no-such-compiler",)}),
        pytest.raises(
            DetkitError, match=r"--compile: the network's code cannot be made \(.*compiler.*\); leave it out"
        ),
    ):
        network(torch.ones(1, 3, 8, 8))


def test_cuda_graphs_need_cuda() -> None:
    with pytest.raises(DetkitError, match="--cuda-graphs: needs a CUDA device, and the model is on the cpu"):
        load(device="cpu", cuda_graphs=True)


class Graph:
    """A CUDA graph as far as it is seen from Python: what is called while it records is called again by `replay`."""

    def __init__(self) -> None:
        self.calls: list[Callable[[], Any]] = []

    def replay(self) -> None:
        for call in self.calls:
            call()


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> tuple[Recorded, list[tuple[int, ...]]]:
    """A recorded forward that doubles, on a CUDA that is imitated, and the shapes for which it ran."""
    recording: list[Graph] = []
    shapes: list[tuple[int, ...]] = []

    @contextmanager
    def graph(graph: Graph, capture_error_mode: str) -> Iterator[None]:
        assert capture_error_mode == "thread_local"
        recording.append(graph)
        yield
        recording.clear()

    @contextmanager
    def nothing(*_: Any) -> Iterator[None]:
        yield

    class Stream:
        def __init__(self, *_: Any) -> None: ...

        def wait_stream(self, other: Any) -> None: ...

    for name, value in {
        "CUDAGraph": Graph, "graph": graph, "Stream": Stream, "current_stream": Stream, "stream": nothing,
        "device": nothing,
    }.items():  # fmt: skip
        monkeypatch.setattr(torch.cuda, name, value)

    def forward(x: Tensor) -> list[Tensor]:
        shapes.append(tuple(x.shape))
        out = torch.empty_like(x)
        if recording:
            recording[0].calls.append(lambda: out.copy_(2 * x))
        return [out if recording else 2 * x]

    return Recorded(forward), shapes


@pytest.mark.filterwarnings("ignore:User provided device_type of 'cuda'")
def test_a_recorded_forward_reads_each_new_input(recorded: tuple[Recorded, list[tuple[int, ...]]]) -> None:
    forward, shapes = recorded
    for number in (1.0, 2.0, 3.0):
        assert forward(torch.full((2, 3), number))[0].tolist() == [[2 * number] * 3] * 2
    assert shapes == [(2, 3)] * 4  # three to warm up, one to record
    for rows in range(3, 12):
        assert forward(torch.ones(rows, 1))[0].tolist() == [[2]] * rows
    shapes.clear()
    forward(torch.ones(2, 3))
    assert shapes == []
    forward(torch.ones(11, 1))  # the ninth and later shapes run as they are
    assert shapes == [(11, 1)]


@pytest.mark.filterwarnings("ignore:User provided device_type of 'cuda'")
def test_what_cannot_be_recorded_is_an_error(recorded: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def graph(*_: Any, **__: Any) -> Iterator[None]:
        raise RuntimeError("operation not permitted when stream is capturing\nmore")
        yield

    monkeypatch.setattr(torch.cuda, "graph", graph)
    with pytest.raises(DetkitError, match=r"cannot be recorded \(operation not permitted when stream is capturing\); "):
        recorded[0](torch.ones(1))
