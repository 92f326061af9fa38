"""Times whole detectors side by side in one run, on a GPU or on the CPU.

    python tools/bench_detect.py --json tools/results/bench_detect.json
    python tools/bench_detect.py --size 320 --compile --cpu-time    # on a CPU that does other work, too
    python tools/bench_detect.py --peer-python ~/peers/bin/python   # with Ultralytics, as tools/bench_cpu.py explains

The contestants of a case take turns (A B A B …) in one process, so that whatever else the machine does falls on all of
them. A case reports medians, and ratios to the median of its first contestant.

  prepare       the forward of one network, on an input that is ready: as it was trained, with batch norm folded, in
                channels-last memory, with both (as `detkit.load` gives it), in bf16, and with --compile compiled.
  faster_rcnn   pixels of RGB pictures in memory → boxes in the pictures' pixels: torchvision's Faster R-CNN as it
                stands, with its own resizing and post-processing, and detkit's with the same weights. That both find
                the same is checked.
  yolov3        the same for YOLOv3-tiny and YOLOv3, and Ultralytics' networks of these names where ultralytics
                (AGPL-3.0) can be imported, on the same PyTorch and OpenCV. They are those that it releases as yolov3u
                and yolov3-tinyu: anchor-free heads and up to 1.8 times the operations, see tools/bench_cpu.py, so this
                compares what the names give and not the same network.

Random weights are made to behave like trained ones: batch norms hold the statistics of the pictures, and biases let a
realistic number of candidates pass, but for Ultralytics', whose networks find next to nothing. Selection alone is timed
by tools/bench_select.py.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import platform
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any

import bench_cpu
import cv2
import numpy as np
import torch
from torch import nn

import detkit
from detkit.data.picture import sample_picture
from detkit.inference import DTYPES, compile_forward, fold_batch_norm, for_inference
from detkit.model import Model, build_detector, read_config, read_model
from detkit.predict.benchmark import processor
from detkit.structures import Detections

PREPARED = ("yolov3_fasternet_coco", "yolov3_tiny_coco")
YOLO = {"yolov3_tiny_coco": "yolov3-tiny.yaml", "yolov3_darknet53_coco": "yolov3.yaml"}
CANDIDATES = 90
Contestants = dict[str, Callable[[], Any]]


# ----------------------------------------------------------------------------------------------------------------------
# Cases: their name, and what to time


def prepare_cases(options: argparse.Namespace) -> Iterator[tuple[str, Contestants]]:
    """Networks with and without what `for_inference` does to them."""
    for name in PREPARED:
        settings = [f"preprocess.size=[{options.size}, {options.size}]"]
        if name == PREPARED[0]:
            config, detector = read_model(name, settings=settings)
        else:
            torch.manual_seed(0)
            config = read_config(name, settings)
            detector = build_detector(config)
        for batch in options.batch:
            images = config.preprocess(pictures(batch))[0].images.to(options.device)
            planes = images.contiguous()
            folded, plain, last = copy.deepcopy(detector), copy.deepcopy(detector), copy.deepcopy(detector)
            fold_batch_norm(folded)
            plain, folded = plain.to(options.device), folded.to(options.device)
            last = last.to(options.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
            contestants = {
                "as trained": forward(plain, planes),
                "folded": forward(folded, planes),
                "channels last": forward(last, images),
            }
            for precision in options.precision:
                ready = copy.deepcopy(detector)
                for_inference(ready, options.device, precision)
                contestants[f"as loaded {precision}"] = forward(ready, images, precision)
                if options.compile:
                    compile_forward(ready := copy.deepcopy(ready), one_size=True)
                    contestants[f"compiled {precision}"] = forward(ready, images, precision)
            yield f"prepare {name}, {batch} of {options.size} × {options.size}", contestants


def faster_rcnn_cases(options: argparse.Namespace) -> Iterator[tuple[str, Contestants]]:
    """Torchvision's Faster R-CNN and detkit's of the same weights."""
    name, sides = "fasterrcnn_resnet50_fpn", (options.size, round(options.size * 5 / 3))
    theirs = torchvision_model(name, sides)
    with tempfile.TemporaryDirectory() as folder:
        torch.save(theirs.state_dict(), f"{folder}/weights.pth")
        settings = [f"preprocess.size=[{sides[0]}, {sides[1]}]"]
        load = partial(
            detkit.load, f"torchvision/{name}", f"{folder}/weights.pth", device=str(options.device), settings=settings
        )
        ours = {precision: load(precision=precision) for precision in options.precision}
    theirs = theirs.to(options.device)
    for batch in options.batch:
        given = pictures(batch)
        contestants: Contestants = {}
        for precision, model in ours.items():
            contestants[f"detkit {precision}"] = partial(model.predict, given)
            if precision == "fp32" or options.device.type == "cuda":
                label = f"torchvision {torch_version('torchvision')} {precision}"
                contestants[label] = partial(torchvision_detect, theirs, given, options.device, precision)
        if "fp32" in ours:
            check_same(ours["fp32"], torchvision_detect(theirs, given, options.device, "fp32"), given)
        yield f"faster_rcnn {name}, {batch} of {sides[0]} × {sides[1]} at most", contestants


def yolov3_cases(options: argparse.Namespace) -> Iterator[tuple[str, Contestants]]:
    """Whole detection by YOLOv3, and Ultralytics' networks of these names."""
    for name, yaml in YOLO.items():
        settings = [f"preprocess.size=[{options.size}, {options.size}]"]
        with tempfile.TemporaryDirectory() as folder:
            weights = Path(folder) / "weights.safetensors"
            bench_cpu._write_random_weights(name, settings, pictures(1)[0], weights)
            ours = {
                precision: detkit.load(
                    name, weights, device=str(options.device), precision=precision, settings=settings
                )
                for precision in options.precision
            }
        for batch in options.batch:
            given = pictures(batch)
            contestants: Contestants = {
                f"detkit {precision}": partial(model.predict, given) for precision, model in ours.items()
            }
            contestants |= ultralytics_detect(yaml, given, options)
            yield f"yolov3 {name}, {batch} of {options.size} × {options.size}", contestants


def forward(network: nn.Module, images: torch.Tensor, precision: str = "fp32") -> Callable[[], Any]:
    """Return what runs a network alone."""

    @torch.inference_mode()
    def run() -> Any:
        with torch.autocast(images.device.type, DTYPES[precision], enabled=precision != "fp32"):
            return network(images)

    return run


def pictures(batch: int) -> list[np.ndarray[Any, np.dtype[np.uint8]]]:
    """The two sample pictures in turn."""
    both = [sample_picture("astronaut"), sample_picture("chelsea")]
    return [both[i % 2] for i in range(batch)]


# ----------------------------------------------------------------------------------------------------------------------
# torchvision


def torchvision_model(name: str, sides: tuple[int, int]) -> Any:
    """Random weights with which some boxes are found in the sample pictures."""
    from torchvision.models import get_model

    torch.manual_seed(0)
    model: Any = get_model(name, weights=None, weights_backbone=None).eval()
    model.transform.min_size, model.transform.max_size = (sides[0],), sides[1]
    planes = [torch.from_numpy(picture).permute(2, 0, 1) / 255 for picture in pictures(2)]
    bench_cpu._settle_norms(model.backbone, model.transform(planes)[0].tensors)
    logits: list[torch.Tensor] = []
    head = model.roi_heads.box_predictor.cls_score
    with torch.no_grad():
        head.weight *= 30 / head.weight.norm(dim=1, keepdim=True)
        watch = head.register_forward_hook(lambda module, inputs, out: logits.append(out))
        model(planes)
        watch.remove()
        low, high = -100.0, 100.0
        for _ in range(30):  # bisection for the bias of the background, torchvision's class 0
            middle = (low + high) / 2
            logits[0][:, 0] += middle
            passed = int((logits[0].softmax(1)[:, 1:] > 0.05).sum())
            logits[0][:, 0] -= middle
            low, high = (middle, high) if passed > 2 * CANDIDATES else (low, middle)
        head.bias[0] += high
    return model


@torch.inference_mode()
def torchvision_detect(model: Any, given: Sequence[Any], device: torch.device, precision: str) -> Any:
    """Detection as torchvision's users write it, with the results on the CPU."""
    planes = [torch.from_numpy(picture).to(device).permute(2, 0, 1) / 255 for picture in given]
    with torch.autocast(device.type, DTYPES[precision], enabled=precision != "fp32"):
        return [{key: value.cpu() for key, value in found.items()} for found in model(planes)]


def check_same(model: Model, theirs: Sequence[dict[str, torch.Tensor]], given: Sequence[Any]) -> None:
    """End the run when the two do not find the same, but for a few boxes that lie on a threshold."""
    found: list[Detections] = model.predict(given)
    total = same = 0
    for own, other in zip(found, theirs, strict=True):
        near = (own.boxes[:, None] - other["boxes"]).abs().amax(-1) < 0.5
        near &= (own.labels[:, None] == other["labels"] - 1) & ((own.scores[:, None] - other["scores"]).abs() < 1e-2)
        total += len(own) + len(other["boxes"])
        same += int(near.any(0).sum() + near.any(1).sum())
    if total < 20 or same < 0.95 * total:
        raise SystemExit(f"of {total} boxes that detkit and torchvision find, only {same} are found by both")


# ----------------------------------------------------------------------------------------------------------------------
# Ultralytics


def ultralytics_detect(yaml: str, given: Sequence[Any], options: argparse.Namespace) -> Contestants:
    """Its `predict`, or nothing and a sentence where it cannot be imported."""
    try:
        os.environ.setdefault("YOLO_OFFLINE", "true")
        import ultralytics  # type: ignore[import-not-found]
    except ModuleNotFoundError as error:
        print(f"left out: ultralytics (no module {error.name}); --peer-python names an environment that has it")
        return {}
    torch.manual_seed(0)
    yolo = ultralytics.YOLO(yaml, task="detect")
    images = torch.from_numpy(np.stack([cv2.resize(picture, (options.size, options.size)) for picture in given[:2]]))
    network = yolo.model.eval()
    bench_cpu._settle_norms(network, images.permute(0, 3, 1, 2) / 255)
    reversed_channels = [np.ascontiguousarray(picture[..., ::-1]) for picture in given]  # it reads BGR
    same = {"imgsz": options.size, "conf": bench_cpu.SCORE, "iou": bench_cpu.IOU, "max_det": bench_cpu.MAX_DETECTIONS}
    how = {**same, "device": str(options.device), "batch": len(given), "verbose": False}
    return {f"ultralytics {torch_version('ultralytics')} fp32": partial(yolo.predict, reversed_channels, **how)}


# ----------------------------------------------------------------------------------------------------------------------
# The run and its report


def measure(contestants: Contestants, options: argparse.Namespace) -> dict[str, Any]:
    """Time the contestants in turn until there are enough rounds, or three and no time is left."""
    threads = torch.get_num_threads(), cv2.getNumThreads()
    for run in contestants.values():  # compiles, chooses algorithms
        run()
    torch.set_num_threads(threads[0])  # ultralytics sets both
    cv2.setNumThreads(threads[1])
    times: dict[str, list[float]] = {name: [] for name in contestants}
    first, end = times[next(iter(times))], time.monotonic() + options.seconds
    now = partial(clock, options.device, options.cpu_time)
    while len(first) < options.rounds and (len(first) < 3 or time.monotonic() < end):
        for name, run in contestants.items():
            begin = now()
            run()
            times[name].append(now() - begin)
    return {
        name: {
            "median": median(found), "min": min(found), "max": max(found), "rounds": len(found),
            "ratio": median(first) / median(found),
        }
        for name, found in times.items()
    }  # fmt: skip


def clock(device: torch.device, cpu_time: bool) -> float:
    """The time when the device has done all that it was asked to: the clock's, or what this process had of the CPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.process_time() if cpu_time else time.perf_counter()


def torch_version(package: str) -> str:
    """Return a package's version, or that it is missing."""
    try:
        return version(package).partition("+")[0]
    except PackageNotFoundError:
        return "missing"


def numbers(text: str) -> list[int]:
    """Read whole numbers that are separated by commas."""
    return [int(part) for part in text.split(",")]


CASES = {"prepare": prepare_cases, "faster_rcnn": faster_rcnn_cases, "yolov3": yolov3_cases}


def main() -> None:
    """Run the benchmark."""
    on_gpu = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the report there, too")
    parser.add_argument("--device", type=torch.device, default=torch.device("cuda" if on_gpu else "cpu"))
    parser.add_argument("--size", type=int, default=608 if on_gpu else 416, help="side of the networks' inputs")
    parser.add_argument("--batch", type=numbers, default=[1, 8, 64] if on_gpu else [1], help="pictures at once: 1,8,64")
    parser.add_argument("--precision", type=lambda text: text.split(","), default=["fp32", "bf16"])
    parser.add_argument("--compile", action="store_true", help="time compiled networks, too, which takes minutes")
    parser.add_argument("--only", choices=CASES, nargs="+", default=list(CASES), help="leave out the rest")
    parser.add_argument("--rounds", type=int, default=15, help="times that each contestant of a case runs")
    parser.add_argument("--seconds", type=float, default=60, help="a case ends then if it had three rounds")
    parser.add_argument(
        "--cpu-time", action="store_true", help="seconds of the CPU, not the clock's: one thread on a busy machine"
    )
    parser.add_argument("--peer-python", metavar="PATH", help="interpreter of an environment that has ultralytics")
    options = parser.parse_args()
    bench_cpu.borrow_packages(options.peer_python)
    if options.cpu_time:
        torch.set_num_threads(1)
        cv2.setNumThreads(1)
    packages = ("torch", "torchvision", "numpy", "opencv-python-headless", "ultralytics")
    report: dict[str, Any] = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": torch.cuda.get_device_name(options.device) if options.device.type == "cuda" else processor(),
        "system": {"platform": platform.platform(), "cores": os.cpu_count(), "load": os.getloadavg()[0]},
        "threads": torch.get_num_threads(),
        "clock": "CPU time of the process" if options.cpu_time else "wall",
        "versions": {"python": platform.python_version()} | {name: torch_version(name) for name in packages},
        "cases": {},
    }
    print(f"{report['device']}, {report['threads']} threads, {report['versions']}")
    for kind in options.only:
        for case, contestants in CASES[kind](options):
            print(case, flush=True)
            report["cases"][case] = measure(contestants, options)
            for name, found in report["cases"][case].items():
                print(f"  {name:28}{1000 * found['median']:9.2f} ms   {found['ratio']:5.2f} ×", flush=True)
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
