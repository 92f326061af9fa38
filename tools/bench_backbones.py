"""Compare detkit's own backbones with those of timm and torchvision that are nearest in shape, in one run on the CPU.

python tools/bench_backbones.py --out tools/results/bench_backbones.json

Both look at the same pictures in turn, features only, in evaluation mode and float32; a round is one forward of each,
in changing order. The ratio is the median time of ours over that of theirs: below 1 ours is faster.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import timm
import torch
from torch import Tensor, nn
from torchvision.models import mobilenet_v3_large

from detkit.backbones import BACKBONES


def features(name: str) -> nn.Module:
    """The maps of a timm model at strides 8, 16 and 32."""
    model: nn.Module = timm.create_model(name, features_only=True)
    reductions = model.feature_info.reduction()
    return timm.create_model(name, features_only=True, out_indices=[reductions.index(s) for s in (8, 16, 32)])


PAIRS: dict[str, tuple[str, Callable[[], nn.Module]]] = {
    "darknet53": ("timm darknet53, the same layers", lambda: features("darknet53")),
    "mobilenet_v3_large": ("torchvision mobilenet_v3_large, the same layers", lambda: mobilenet_v3_large().features),
}
"""By our name, what theirs is and how it is built."""


def seconds(network: nn.Module, images: Tensor) -> float:
    """Time one forward, by the processor's clock, which other programs on the machine do not move."""
    start = time.process_time()
    network(images)
    return time.process_time() - start


@torch.inference_mode()
def compare(name: str, images: Tensor, rounds: int) -> dict[str, object]:
    """Return the medians of both in seconds, their parameters, and the ratio."""
    what, build = PAIRS[name]
    both = [BACKBONES[name]((8, 16, 32)).eval(), build().eval()]
    times: list[list[float]] = [[], []]
    for turn in range(rounds + 1):
        for i in (0, 1) if turn % 2 else (1, 0):
            taken = seconds(both[i], images)
            if turn:  # the first warms up
                times[i].append(taken)
    ours, theirs = map(statistics.median, times)
    counts = [sum(p.numel() for p in network.parameters()) for network in both]
    return {
        "theirs": what, "parameters": counts, "seconds": [round(ours, 4), round(theirs, 4)],
        "ratio": round(ours / theirs, 3),
    }  # fmt: skip


def main() -> None:
    """Compare all pairs and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--names", nargs="*", choices=PAIRS, default=list(PAIRS))
    options = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    images = torch.rand(1, 3, options.size, options.size)
    found = {name: compare(name, images, options.rounds) for name in options.names}
    for name, row in found.items():
        print(f"{name}: {row['ratio']} of {row['theirs']}")
    setting = {
        "size": options.size, "rounds": options.rounds, "threads": 1, "torch": torch.__version__,
        "timm": timm.__version__, "processor": platform.processor() or platform.machine(), "time": "processor's",
    }  # fmt: skip
    if options.out:
        options.out.write_text(json.dumps({"setting": setting, "pairs": found}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
