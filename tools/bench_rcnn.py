"""Times Faster R-CNN against torchvision's with the same weights, and what truncating its fully connected layers saves.

    python tools/bench_rcnn.py --json tools/results/bench_rcnn.json

  detect      pixels of one RGB picture in memory → boxes in its pixels, by both, in turns (A B A B …), so that
              whatever else the machine does falls on both. That they find the same is checked in the same run.
  truncation  the two layers of 4096 of VGG-16's head on 300 and 2,000 regions, whole and with the paper's 1,024 and 256
              singular values (arXiv 1504.08083, section 4.4).

Both report medians of the time that passes and, on the CPU, of the processor time, which other programs disturb less.
Weights are random (batch norms hold the statistics of the picture) unless --weights names torchvision's file. With
random weights few boxes are above the score; the proposals are as many as with trained ones.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

import detkit
from detkit.data.picture import read_picture, sample_picture

RANKS = (1024, 256)


def random_weights(model: nn.Module, picture: Tensor) -> None:
    """Give batch norms statistics that fit the picture [3, H, W], and the RPN something to say."""
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
    with torch.no_grad():
        model.backbone.train()(model.transform([picture])[0].tensors)
        model.eval()
        nn.init.normal_(model.rpn.head.cls_logits.bias, std=0.5)


def timed(functions: dict[str, Callable[[], Any]], rounds: int, device: torch.device) -> dict[str, dict[str, float]]:
    """Run the functions in turns, once to warm up and then `rounds` times: medians in milliseconds."""
    wall: dict[str, list[float]] = {name: [] for name in functions}
    cpu: dict[str, list[float]] = {name: [] for name in functions}
    for number in range(rounds + 1):
        for name, function in functions.items():
            begin, begin_cpu = time.perf_counter(), time.process_time()
            function()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            if number:
                wall[name].append(1000 * (time.perf_counter() - begin))
                cpu[name].append(1000 * (time.process_time() - begin_cpu))
    return {
        name: {"ms": statistics.median(wall[name]), "cpu_ms": statistics.median(cpu[name])} for name in functions
    }  # fmt: skip


def detection(
    name: str, weights: Path | None, picture: Path | None, side: int, rounds: int, device: torch.device
) -> dict[str, Any]:
    """Time whole detections of one picture by both, and count what they find alike."""
    pixels = read_picture(picture) if picture else sample_picture("astronaut")
    tensor = torch.from_numpy(pixels.copy()).permute(2, 0, 1).float() / 255
    torch.manual_seed(0)
    sizes = {"min_size": side, "max_size": round(side * 1333 / 800)}
    theirs = getattr(torchvision.models.detection, name)(weights=None, weights_backbone=None, **sizes)
    with tempfile.TemporaryDirectory() as folder:
        if weights is None:
            random_weights(theirs, tensor)
            weights = Path(folder) / "random.pt"
            torch.save(theirs.state_dict(), weights)
        theirs.load_state_dict(torch.load(weights, weights_only=True))
        settings = [f"preprocess.size=[{sizes['min_size']}, {sizes['max_size']}]"]
        ours = detkit.load(f"torchvision/{name}", weights, device=str(device), settings=settings)
    theirs.eval().to(device)

    def reference() -> dict[str, Tensor]:
        with torch.inference_mode():
            found: dict[str, Tensor] = theirs([torch.from_numpy(pixels).to(device).permute(2, 0, 1) / 255])[0]
            return {key: value.cpu() for key, value in found.items()}

    found, expected = ours.predict([pixels])[0], reference()
    alike = 0
    for box, label, score in zip(found.boxes, found.labels, found.scores, strict=True):
        near = (expected["boxes"] - box).abs().amax(1) < 0.1
        near &= (expected["scores"] - score).abs() < 1e-3
        alike += int((near & (expected["labels"] - 1 == label)).any())
    times = timed({"detkit": lambda: ours.predict([pixels]), "torchvision": reference}, rounds, device)
    return {
        "model": name,
        "picture": list(pixels.shape[:2]),
        "shorter_side": side,
        "found": {"detkit": len(found), "torchvision": len(expected["scores"]), "alike": alike},
        "times": times,
    }


def truncation(regions: int, rounds: int, device: torch.device) -> dict[str, Any]:
    """Time VGG-16's two fully connected layers on features of so many regions, whole and truncated."""
    torch.manual_seed(0)
    layers = [nn.Linear(512 * 7 * 7, 4096), nn.Linear(4096, 4096)]
    whole = nn.Sequential(layers[0], nn.ReLU(), layers[1], nn.ReLU()).to(device)
    # Of the shapes that truncation gives; what the weights are does not change the time.
    parts = [
        nn.Sequential(nn.Linear(layer.in_features, rank, bias=False), nn.Linear(rank, layer.out_features))
        for layer, rank in zip(layers, RANKS, strict=True)
    ]
    small = nn.Sequential(parts[0], nn.ReLU(), parts[1], nn.ReLU()).to(device)
    x = torch.rand(regions, 512 * 7 * 7, device=device)
    with torch.inference_mode():
        times = timed({"whole": lambda: whole(x), "truncated": lambda: small(x)}, rounds, device)
    parameters = {
        name: sum(p.numel() for p in net.parameters()) for name, net in (("whole", whole), ("truncated", small))
    }
    return {"regions": regions, "ranks": list(RANKS), "parameters": parameters, "times": times}


def main() -> None:
    """Measure, print and, if wanted, write a JSON file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["fasterrcnn_resnet50_fpn"])
    parser.add_argument("--weights", type=Path, help="torchvision's state dict of the one model that is named")
    parser.add_argument("--picture", type=Path)
    parser.add_argument("--side", type=int, default=800, help="the shorter side of what the network sees")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--regions", type=int, nargs="*", default=[300, 2000])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    device = torch.device(options.device)
    report: dict[str, Any] = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": {"system": platform.platform(), "cores": os.cpu_count(), "load": os.getloadavg()[0]}
        | ({"gpu": torch.cuda.get_device_name(device)} if device.type == "cuda" else {}),
        "threads": torch.get_num_threads(),
        "versions": {"torch": torch.__version__, "torchvision": torchvision.__version__},
        "detect": [
            detection(name, options.weights, options.picture, options.side, options.rounds, device)
            for name in options.models
        ],
        "truncation": [truncation(regions, options.rounds, device) for regions in options.regions],
    }
    for case in report["detect"]:
        _show(f"{case['model']} at {case['shorter_side']}, {case['found']}", case["times"])
    for case in report["truncation"]:
        _show(f"two layers of 4096 on {case['regions']} regions, {case['parameters']} parameters", case["times"])
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n")


def _show(title: str, times: dict[str, dict[str, float]]) -> None:
    print(title)
    for name, median in times.items():
        print(f"  {name:<12} {median['ms']:9.1f} ms  {median['cpu_ms']:9.1f} ms of processor time")


if __name__ == "__main__":
    main()
