"""Compare detkit's backbones with peers of the same shape, in one run on one thread of the CPU.

    python tools/bench_backbones.py --out tools/results/bench_backbones.json

A round is one pass of ours and one of the peer's over the same picture, in changing order, in float32: `inference`
is a forward in evaluation mode, `training` a forward and a backward in training mode. Networks are built anew several
times, since where their tensors lie in memory moves their times too. Reported is the median of ours over that of the
peer's, below 1 where ours is faster, and what 95 % of the ratios lie between when builds and their rounds are drawn
again; Darknet-53 against itself shows what is noise. Time is the processor's, which other programs hardly move.
Where the peer is said to be `literal`, it holds the same weights and gives the same maps.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable, Sequence
from copy import deepcopy
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path
from types import MethodType
from typing import Any, Literal, NamedTuple

import numpy as np
import timm
import torch
import torchvision
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torchvision.models import alexnet, googlenet, mobilenet_v3_large

from detkit.backbones import BackboneConfig, build_backbone
from detkit.backbones.nat import NATTEN, WINDOW, NeighbourhoodAttention, attend_by_natten
from detkit.backbones.norm import DarknetNorm
from detkit.backbones.psvit import Layer
from detkit.backbones.pvt import SpatialReductionAttention
from detkit.backbones.zoo import ZOO

SIZE = 224
MODES: tuple[Literal["inference", "training"], ...] = ("inference", "training")


class Peer(NamedTuple):
    """What the peer is, how it is made of ours, and the strides of the maps that both give."""

    what: str
    build: Callable[[nn.Module], nn.Module]
    strides: Sequence[int] = (8, 16, 32)


# ----------------------------------------------------------------------------------------------------------------------
# Peers


def pyramid(name: str, ours: nn.Module) -> nn.Module:
    """The pyramid that timm makes of a model, with the maps that ours gives."""
    model: Any = timm.create_model(name, features_only=True)
    reductions = model.feature_info.reduction()
    indices = [len(reductions) - 1 - reductions[::-1].index(stride) for stride in ours.strides]  # type: ignore[arg-type, union-attr]
    peer: nn.Module = timm.create_model(name, features_only=True, out_indices=indices)
    return peer


def of_zoo(name: str, build: Callable[..., nn.Module] = pyramid, strides: Sequence[int] = (8, 16, 32)) -> Peer:
    """The pyramid that timm makes of a model that has a short name here."""
    model = ZOO[name].removeprefix("timm/")
    return Peer(f"timm {model} with features_only, the same network", partial(build, model), strides)


def sequential(ours: nn.Module) -> nn.Module:
    """The layers of a network without branches one after the other, each batch norm torch's."""
    peer = nn.Sequential(*(deepcopy(layer) for layer in ours.modules() if not list(layer.children())))
    for i, layer in enumerate(peer):
        if isinstance(layer, DarknetNorm):
            peer[i] = layer.plain()
    return peer


def lenet(ours: nn.Module) -> nn.Module:
    """LeNet as it is mostly written: every map of C3 sees all of S2, and no layer has coefficients."""
    return nn.Sequential(
        nn.Conv2d(3, 1, 1, bias=False), nn.Conv2d(1, 6, 5), nn.Tanh(), nn.AvgPool2d(2), nn.Tanh(),
        nn.Conv2d(6, 16, 5), nn.Tanh(), nn.AvgPool2d(2), nn.Tanh(),
        nn.Conv2d(16, 120, 5, stride=8), nn.Tanh(), nn.Conv2d(120, 84, 1), nn.Tanh(),
    )  # fmt: skip


def with_forward(kind: type[nn.Module], forward: Callable[..., Tensor], ours: nn.Module) -> nn.Module:
    """A copy of ours in which each module of a kind computes as `forward` says."""
    peer = deepcopy(ours)
    for module in peer.modules():
        if isinstance(module, kind):
            module.forward = MethodType(forward, module)  # type: ignore[method-assign]
    return peer


def reduced_attention(self: SpatialReductionAttention, x: Tensor, size_hw: tuple[int, int]) -> Tensor:
    """PVT's attention as in the released code (classification/pvt.py): the map of attention is written out."""
    b, n, c = x.shape
    q = self.q(x).reshape(b, n, self.heads, c // self.heads).permute(0, 2, 1, 3)
    if self.reduction > 1:
        x = self.sr(x.permute(0, 2, 1).reshape(b, c, *size_hw)).reshape(b, c, -1)
        x = self.norm(x.permute(0, 2, 1))
    k, v = self.kv(x).reshape(b, -1, 2, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
    weights = (q @ k.transpose(-2, -1) * (c // self.heads) ** -0.5).softmax(-1)
    out: Tensor = self.proj((weights @ v).transpose(1, 2).reshape(b, n, c))
    return out


def unfolded_attention(self: NeighbourhoodAttention, x: Tensor) -> Tensor:
    """NAT's attention with the keys and values of each cell's window gathered, 49 for each cell."""
    q, k, v = self.qkv(x).unflatten(3, (3, self.heads, -1)).unbind(3)
    index, far = [], []
    for side in x.shape[1:3]:
        cells = torch.arange(side)[:, None]
        index.append((cells - WINDOW // 2).clamp(0, side - WINDOW) + torch.arange(WINDOW))
        far.append(index[-1] - cells + WINDOW - 1)
    rows, columns = index[0][:, None, :, None], index[1][None, :, None, :]
    scores = torch.einsum("bhwnd,bhwijnd->bhwnij", q * q.shape[-1] ** -0.5, k[:, rows, columns])
    scores = scores + self.rpb[:, far[0][:, None, :, None], far[1][None, :, None, :]].permute(1, 2, 0, 3, 4)
    weights = scores.flatten(4).softmax(-1).view_as(scores)
    out: Tensor = self.proj(torch.einsum("bhwnij,bhwijnd->bhwnd", weights, v[:, rows, columns]).flatten(3))
    return out


def natten_attention(self: NeighbourhoodAttention, x: Tensor) -> Tensor:
    """NAT's attention by natten's kernels."""
    q, k, v = self.qkv(x).unflatten(3, (3, self.heads, -1)).unbind(3)
    out: Tensor = self.proj(attend_by_natten(q, k, v, self.rpb).flatten(3))
    return out


class Unshared(nn.Module):
    """A block of timm's vision transformer, with attention of its own, in the place of a layer of PSViT."""

    def __init__(self, layer: Layer) -> None:
        super().__init__()
        self.block = Block(layer.attn.v.in_features, layer.attn.heads, qkv_bias=True)

    def forward(self, x: Tensor, compared: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """[B, N, C] → [B, N, C]."""
        return self.block(x), compared


def unshared(ours: nn.Module) -> nn.Module:
    """A copy of PSViT with the blocks of timm's vision transformer, none of which shares attention."""
    peer = deepcopy(ours)
    for name, module in ours.named_modules():
        if isinstance(module, Layer):
            peer.set_submodule(name, Unshared(module))
    return peer


def padded_alexnet(ours: nn.Module) -> nn.Module:
    """The layers of torchvision's AlexNet behind the padding that gives as many cells as ours."""
    return nn.Sequential(nn.ZeroPad2d((0, 3, 0, 3)), *sequential(ours))  # type: ignore[misc]


def last_map(name: str, ours: nn.Module) -> nn.Module:
    """The map that timm makes of a plain transformer of 12 blocks behind the last."""
    peer: nn.Module = timm.create_model(name, features_only=True, out_indices=[11])
    return peer


def googlenet_body(ours: nn.Module) -> nn.Module:
    """The GoogLeNet of torchvision without its classifiers."""
    model: Any = googlenet(aux_logits=False, transform_input=False, init_weights=False)
    model.avgpool = model.dropout = model.fc = nn.Identity()
    return model  # type: ignore[no-any-return]


_UNSHARED = Peer("the same with blocks of timm's vision transformer, none of which shares attention", unshared)
_UNFOLDED = Peer(
    "literal: keys and values gathered for each cell",
    partial(with_forward, NeighbourhoodAttention, unfolded_attention),
)
_NATTEN = Peer("literal: natten's kernels", partial(with_forward, NeighbourhoodAttention, natten_attention))
_DEIT = "timm deit_small, of the same width and cost, all layers on all tokens"

PAIRS: list[tuple[str, Peer]] = [
    ("darknet53", Peer("literal: itself", deepcopy)),
    ("darknet53", Peer("timm darknet53, the same layers", partial(pyramid, "darknet53"))),
    *((name, Peer("literal: the same layers in torch.nn.Sequential", sequential, (32,)))
      for name in ("darknet19", "extraction", "darknet_tiny")),
    ("darknet_reference", Peer("literal: the same layers in torch.nn.Sequential", sequential, (64,))),
    ("simple-cnn", Peer("literal: the same layers in torch.nn.Sequential", sequential, (8,))),
    ("lenet5", Peer("torch.nn.Sequential, without table I, coefficients and scaled tanh", lenet, (32,))),
    ("alexnet", Peer("literal: torchvision's layers in torch.nn.Sequential", padded_alexnet, (32,))),
    ("alexnet", Peer("torchvision alexnet, 13 × 13 cells where ours has 14 × 14", lambda _: alexnet().features, (32,))),
    ("googlenet", Peer("torchvision googlenet", googlenet_body, (32,))),
    ("mobilenet_v3_large", Peer("torchvision mobilenet_v3_large", lambda _: mobilenet_v3_large().features, (32,))),
    ("pvt_small", Peer(
        "literal: attention as in the released code",
        partial(with_forward, SpatialReductionAttention, reduced_attention),
    )),
    ("pvt_small", Peer("timm pvt_v2_b2, another network of its size", partial(pyramid, "pvt_v2_b2"))),
    ("nat_tiny", _UNFOLDED),
    ("nat_tiny", Peer("timm swin_tiny, another network of its cost", partial(pyramid, "swin_tiny_patch4_window7_224"))),
    ("psvit_1d_small", _UNSHARED._replace(strides=(16, 32))),
    ("psvit_1d_small", Peer(_DEIT, partial(last_map, "deit_small_patch16_224"), (16, 32))),
    ("psvit_2d_small", _UNSHARED),
    ("vit_s", of_zoo("vit_s", last_map, (16,))),
    *((name, of_zoo(name)) for name in ("swin_t", "resnet50", "convnext_t")),
    *([] if NATTEN is None else [("nat_mini", _NATTEN)]),
]  # fmt: skip
"""Networks of ours by name, each with a peer."""


# ----------------------------------------------------------------------------------------------------------------------
# Times


def one_pass(network: nn.Module, images: Tensor, mode: str) -> float:
    """Time a forward, or a forward and a backward, by the processor's clock."""
    start = time.process_time()
    with torch.set_grad_enabled(mode == "training"):
        maps = network(images)
        if mode == "training":
            maps = [maps] if isinstance(maps, Tensor) else maps
            torch.stack([x.mean() for x in maps]).sum().backward()
    taken = time.process_time() - start
    network.zero_grad()
    return taken


def interval(times: np.ndarray[Any, Any], draws: int = 2000) -> list[float]:
    """What 95 % of the ratios of medians lie between, with builds and then their rounds drawn again.

    times: seconds [builds, rounds, 2], of ours and of the peer.
    """
    random = np.random.default_rng(0)
    builds, rounds, _ = times.shape
    build = random.integers(builds, size=(draws, builds, 1))
    drawn = times[build, random.integers(rounds, size=(draws, builds, rounds))].reshape(draws, -1, 2)
    ours, theirs = np.moveaxis(np.median(drawn, 1), 1, 0)
    return [round(float(x), 3) for x in np.quantile(ours / theirs, (0.025, 0.975))]


def compare(name: str, peer: Peer, builds: int, rounds: int) -> dict[str, Any]:
    """Return medians, their ratio and its interval in both modes, the parameters, and how far literal maps differ."""
    images = torch.rand(1, 3, SIZE, SIZE)
    row: dict[str, Any] = {"ours": name, "theirs": peer.what}
    times: dict[str, list[list[list[float]]]] = {mode: [] for mode in MODES}
    for build in range(builds):
        torch.manual_seed(build)
        ours = build_backbone(BackboneConfig(name=name), peer.strides, (SIZE, SIZE))
        both = [ours, peer.build(ours)]
        if build == 0:
            row["parameters"] = [sum(p.numel() for p in network.parameters()) for network in both]
            if peer.what.startswith("literal"):
                row["difference"] = difference(both[0].eval(), both[1].eval(), images)
        for mode in MODES:
            for network in both:
                network.train(mode == "training")
                one_pass(network, images, mode)
            times[mode].append([])
            for turn in range(rounds):
                taken = {i: one_pass(both[i], images, mode) for i in ((0, 1) if (turn + build) % 2 else (1, 0))}
                times[mode][-1].append([taken[0], taken[1]])
    for mode in MODES:
        seconds = np.array(times[mode])
        medians = np.median(seconds.reshape(-1, 2), 0)
        row[mode] = {
            "ms": [round(1000 * float(x), 2) for x in medians],
            "ratio": round(float(medians[0] / medians[1]), 3),
            "interval": interval(seconds),
        }
    return row


@torch.inference_mode()
def difference(ours: nn.Module, theirs: nn.Module, images: Tensor) -> float:
    """The largest difference between the coarsest maps, in deviations of ours."""
    maps = [network(images) for network in (ours, theirs)]
    a, b = (x if isinstance(x, Tensor) else x[-1] for x in maps)
    return float((a - b).abs().max() / a.std())


def processor() -> str:
    """The processor's name, where the system tells it."""
    information = Path("/proc/cpuinfo")
    names = information.read_text().split("model name") if information.exists() else []
    return names[1].splitlines()[0].strip("\t :") if len(names) > 1 else platform.processor() or platform.machine()


def main() -> None:
    """Compare all pairs, print and, if wanted, write a JSON file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--names", nargs="*", choices=sorted({name for name, _ in PAIRS}), help="ours; by default all")
    parser.add_argument("--builds", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=7, help="of each build")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    versions = {"python": platform.python_version(), "torch": torch.__version__}
    versions |= {"torchvision": torchvision.__version__, "timm": timm.__version__}
    if NATTEN is not None:
        versions["natten"] = version("natten")
    report: dict[str, Any] = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": {"processor": processor(), "capability": torch.backends.cpu.get_cpu_capability(), "threads": 1},
        "versions": versions,
        "setting": {"size": SIZE, "batch": 1, "builds": options.builds, "rounds": options.rounds},
        "pairs": [],
    }  # fmt: skip
    for name, peer in PAIRS:
        if options.names and name not in options.names:
            continue
        row = compare(name, peer, options.builds, options.rounds)
        report["pairs"].append(row)
        print(f"{name} and {peer.what}" + (f" (maps differ by {row['difference']:.1e})" if "difference" in row else ""))
        for mode in MODES:
            (ours, theirs), (low, high) = row[mode]["ms"], row[mode]["interval"]
            print(f"  {mode:<9} {ours:8.2f} ms {theirs:8.2f} ms  {row[mode]['ratio']:.3f} ({low:.3f} to {high:.3f})")
        print(end="", flush=True)
        if options.out:
            options.out.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
