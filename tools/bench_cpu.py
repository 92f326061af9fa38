"""Times detkit on the CPU against other software: whole detection, the network alone, and selection.

    python tools/bench_cpu.py --json bench.json --peer-python ~/peers/bin/python

Every contestant runs in a worker process that is already warm, and the contestants of a case take turns (A B A B …), so
that whatever else the machine does falls on all of them. A case reports medians and their ratios.

  detect   pixels of one RGB picture in memory → boxes in the picture's pixels: resize and pad, network, decode, select.
  forward  the network alone, on an input that is ready.
  select   candidates of one picture → what greedy NMS leaves of them.

Contestants
  detkit         as `detkit.load` gives it, in fp32 and bf16.
  opencv         cv2.dnn reads the same weights from an ONNX file (to write one needs onnx, which detkit[dev] brings),
                 and a NumPy decoding with cv2.dnn.NMSBoxesBatched follows. That its raw maps are detkit's is checked in
                 the same run.
  ultralytics    its yolov3 and yolov3-tiny, built from its yaml and fused as its predictor does. Their heads differ
                 from the paper's (anchor-free, a distribution per side of a box, decoded inside `forward`), so no
                 weights fit both: they are random on both sides, and the column GFLOP says what each computes (an
                 addition and a multiplication are two). AGPL-3.0: it is timed here and is no part of detkit.
  torchvision    batched_nms and the same limits before and after it. That it leaves the same boxes is checked in the
                 same run: the boxes lie on quarters of a pixel and the IoU threshold is 0.5, where both are exact.

Random weights are made to behave like trained ones: batch norms hold the statistics of the picture, and the heads'
biases let a realistic number of candidates pass, the same on both sides. With the shared data (DETKIT_SHARED), trained
YOLO-Fastest is a third model.

Ultralytics, and another OpenCV, live in an environment of their own, because they bring a build of cv2 that would
overwrite detkit's. Nothing of it is needed; without it these contestants are left out and named:

    python -m venv ~/peers && ~/peers/bin/pip install torch==<detkit's version> ultralytics "opencv-python<5"
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor, nn

SCORE, IOU, MAX_DETECTIONS, CANDIDATES = 0.25, 0.45, 100, 90
MODELS = {
    "yolov3": {"model": "yolov3_darknet53_coco", "ultralytics": "yolov3.yaml"},
    "yolov3-tiny": {"model": "yolov3_tiny_coco", "ultralytics": "yolov3-tiny.yaml"},
}
YOLO_FASTEST = "weights/yolo-fastest-1.1/yolo-fastest-1.1.cfg"

Timed = Callable[[], Any]
# (case, contestant, what to time, what else is known of it)
Contestant = tuple[str, str, Timed, dict[str, Any]]


# ----------------------------------------------------------------------------------------------------------------------
# Contestants; they run in a worker, whose interpreter may lack detkit


def detkit_models(spec: dict[str, Any]) -> Iterator[Contestant]:
    """Detkit's models, as its users load them."""
    import detkit

    picture = np.load(spec["picture"])
    for name, model_spec in spec["models"].items():
        for precision in ("fp32", "bf16"):
            model = detkit.load(device="cpu", precision=precision, **model_spec["load"])
            images = torch.from_numpy(np.load(model_spec["input"])).contiguous(memory_format=torch.channels_last)
            forward = _forward_of(model.detector, images, precision)
            found = {"detections": len(model(picture))}
            yield f"{name} detect", f"detkit {precision}", partial(model.predict, [picture]), found
            yield f"{name} forward", f"detkit {precision}", forward, _cost(model.detector, images)


def opencv_models(spec: dict[str, Any]) -> Iterator[Contestant]:
    """The same networks by cv2.dnn, with a decoding in NumPy."""
    picture, label = np.load(spec["picture"]), f"opencv {cv2.__version__}"
    for name, model_spec in spec["models"].items():
        net = cv2.dnn.readNetFromONNX(model_spec["onnx"])
        outputs, images = [f"map{i}" for i in range(len(model_spec["anchors"]))], np.load(model_spec["input"])

        def forward(net: Any = net, images: Any = images, outputs: list[str] = outputs) -> Any:
            net.setInput(images)
            return net.forward(outputs)

        error = _relative_error(forward(), [np.load(path) for path in model_spec["raw"]])
        if error > 1e-3:
            raise SystemExit(
                f"{label} disagrees with detkit on {name}: its raw maps differ by {error:.1e} of their size"
            )

        def detect(forward: Any = forward, model_spec: dict[str, Any] = model_spec) -> Any:
            return _opencv_detect(picture, forward, model_spec)

        yield f"{name} detect", label, detect, {"detections": len(detect()[1])}
        yield f"{name} forward", label, forward, {"relative_error": error}


def ultralytics_models(spec: dict[str, Any]) -> Iterator[Contestant]:
    """Ultralytics' networks of the same name, with random weights."""
    from ultralytics import YOLO, __version__  # type: ignore[import-not-found]

    picture = np.ascontiguousarray(np.load(spec["picture"])[..., ::-1])  # it reads BGR
    for name, model_spec in spec["models"].items():
        if "ultralytics" not in model_spec:
            continue
        torch.manual_seed(0)
        yolo = YOLO(model_spec["ultralytics"], task="detect")
        images = torch.from_numpy(np.load(model_spec["input"]))
        network = yolo.model.eval()
        _settle_norms(network, images)
        with torch.inference_mode():
            best = network(images)[0][0, 4:].amax(0).clamp(1e-6, 1 - 1e-6).logit().sort(descending=True).values
        with torch.no_grad():
            for branch in network.model[-1].cv3:
                branch[-1].bias += math.log(SCORE / (1 - SCORE)) - best[min(CANDIDATES, len(best) - 1)]

        cost = _cost(network, images)
        options = {"imgsz": images.shape[-1], "conf": SCORE, "iou": IOU, "max_det": MAX_DETECTIONS, "rect": False}

        def detect(yolo: Any = yolo, options: dict[str, Any] = options) -> Any:
            return yolo.predict(picture, device="cpu", verbose=False, **options)

        found = {"detections": len(detect()[0])}  # the first prediction builds and fuses
        torch.set_num_threads(spec["threads"])
        fused = yolo.predictor.model
        yield f"{name} detect", f"ultralytics {__version__}", detect, found
        yield f"{name} forward", f"ultralytics {__version__}", _forward_of(fused, images, "fp32"), cost


def selections(spec: dict[str, Any]) -> Iterator[Contestant]:
    """`select` and torchvision's batched_nms on tables of candidates."""
    import torchvision

    from detkit.ops.nms import Selection, select
    from detkit.structures import Candidates

    for count in spec["select"]:
        for num_classes in (1, 80):
            for layout, make in (("clustered", clustered), ("spread", spread)):
                boxes, scores, labels = make(count, num_classes)
                table = Candidates(boxes[None], scores[None], labels[None], torch.tensor([count]))
                for limit in (MAX_DETECTIONS, count):
                    selection = Selection(score=0, iou=0.5, max_detections=limit)
                    if limit == count:
                        selection = selection.model_copy(update={"max_candidates": count})
                    cap = min(selection.cap, count)

                    def ours(table: Candidates = table, selection: Selection = selection) -> Candidates:
                        return select(table, selection)

                    def theirs(
                        boxes: Tensor = boxes, scores: Tensor = scores, labels: Tensor = labels, cap: int = cap,
                        limit: int = limit,
                    ) -> list[Tensor]:  # fmt: skip
                        if cap < len(scores):
                            scores, best = scores.topk(cap)
                            boxes, labels = boxes[best], labels[best]
                        kept = torchvision.ops.batched_nms(boxes, scores, labels, 0.5)[:limit]
                        return [boxes[kept], scores[kept], labels[kept]]

                    case = f"select {count} {layout}, {num_classes} class{'es' * (num_classes > 1)}, "
                    case += f"{'no limit' if limit == count else f'best {limit}'}"
                    found, expected = ours(), theirs()
                    left = int(found.count[0])
                    same = left == len(expected[1]) and all(
                        torch.equal(a[0, :left], b)
                        for a, b in zip((found.boxes, found.scores, found.labels), expected, strict=True)
                    )
                    if not same:
                        raise SystemExit(
                            f"{case}: detkit leaves {left} boxes, torchvision {len(expected[1])} or others"
                        )
                    yield case, "detkit", ours, {"detections": left}
                    yield case, f"torchvision {torchvision.__version__.partition('+')[0]}", theirs, {"detections": left}


def clustered(count: int, num_classes: int) -> tuple[Tensor, Tensor, Tensor]:
    """Candidates as a detector gives them: 50 around each object, shifted and scaled by 8 %, a tenth with any class.

    Objects have sides of 16 to 256 pixels and lie anywhere in 1280 × 1280; scores are all different and fall with the
    distance to the object. Returns boxes [N, 4], scores [N], labels [N].
    """
    random = torch.Generator().manual_seed(count + num_classes)
    objects = torch.arange(count) % max(1, count // 50)
    size = 16 * 16 ** torch.rand(max(1, count // 50), 2, generator=random)
    centre = 1280 * torch.rand(size.shape, generator=random)
    shift, scale = torch.randn(2, count, 2, generator=random)
    boxes = _quarters(centre[objects] + 0.08 * shift * size[objects], size[objects] * torch.exp(0.08 * scale))
    label = torch.randint(num_classes, (len(size),), generator=random)[objects]
    wrong = torch.rand(count, generator=random) < 0.1
    label = torch.where(wrong, torch.randint(num_classes, (count,), generator=random), label)
    distance = shift.norm(dim=1) + scale.norm(dim=1) + torch.rand(count, generator=random)
    return boxes, _scores_in_order(distance), label


def spread(count: int, num_classes: int) -> tuple[Tensor, Tensor, Tensor]:
    """Candidates with sides of 8 to 64 pixels anywhere in 4096 × 4096, which nearly all survive: the worst case."""
    random = torch.Generator().manual_seed(count + num_classes)
    boxes = _quarters(4096 * torch.rand(count, 2, generator=random), 8 * 8 ** torch.rand(count, 2, generator=random))
    labels = torch.randint(num_classes, (count,), generator=random)
    return boxes, _scores_in_order(torch.rand(count, generator=random)), labels


def _quarters(centre: Tensor, size: Tensor) -> Tensor:
    """Boxes [N, 4] whose corners are quarters of a pixel, so that areas and torchvision's offsets are exact."""
    return torch.cat([centre - size / 2, centre + size / 2], 1).mul(4).round().div(4)


def _scores_in_order(cost: Tensor) -> Tensor:
    """Scores that are all different, in 0 … 1, the highest where the cost is lowest."""
    return 1 - (cost.argsort().argsort() + 1) / (len(cost) + 1)


def _forward_of(network: nn.Module, images: Tensor, precision: str) -> Timed:
    @torch.inference_mode()
    def forward() -> Any:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            return network(images)

    return forward


def _cost(network: nn.Module, images: Tensor) -> dict[str, Any]:
    from torch.utils.flop_counter import FlopCounterMode

    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(images.to(next(network.parameters()).dtype))
    return {"gflop": counter.get_total_flops() / 1e9, "parameters": sum(p.numel() for p in network.parameters())}


def _settle_norms(network: nn.Module, images: Tensor) -> None:
    """Give batch norms the images' statistics, so that random weights neither explode nor die out."""
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0
        norm.train()
    with torch.no_grad():
        network(images)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        norm.eval()


def _relative_error(found: Any, expected: Any) -> float:
    return max(float(np.abs(a - b).max() / np.abs(b).max()) for a, b in zip(found, expected, strict=True))


def _opencv_detect(picture: Any, forward: Callable[..., Any], model: dict[str, Any]) -> tuple[Any, Any, Any]:
    """Detection as a user of cv2.dnn writes it: boxes [N, 4] xyxy, scores [N], labels [N]."""
    size, (height, width), (top, left) = model["size"], model["resized"], model["offset"]
    canvas = np.full((*size, 3), 128, np.uint8)
    y, x = int(top), int(left)
    canvas[y : y + height, x : x + width] = cv2.resize(picture, (width, height))
    found = []
    for raw, anchors in zip(forward(images=cv2.dnn.blobFromImage(canvas, 1 / 255)), model["anchors"], strict=True):
        _, channels, rows, columns = raw.shape
        grid = raw.reshape(len(anchors), channels // len(anchors), rows, columns)
        objectness = 1 / (1 + np.exp(-grid[:, 4]))
        anchor, row, column = np.nonzero(objectness > SCORE)
        values = grid[anchor, :, row, column]
        scores = objectness[anchor, row, column, None] / (1 + np.exp(-values[:, 5:]))
        box, label = np.nonzero(scores > SCORE)
        cell = np.stack([column, row], 1) + 1 / (1 + np.exp(-values[:, :2]))
        extent = np.array(anchors, np.float32)[anchor] * np.exp(values[:, 2:4])
        corner = cell * (size[1] / columns, size[0] / rows) - extent / 2
        found.append((np.concatenate([corner, extent], 1)[box], scores[box, label], label))
    boxes, scores, labels = map(np.concatenate, zip(*found, strict=True))
    nms: Any = cv2.dnn.NMSBoxesBatched  # takes arrays, though its stub says lists
    kept = np.array(nms(boxes, scores, labels, SCORE, IOU), np.int64)
    kept = kept[np.argsort(-scores[kept], kind="stable")][:MAX_DETECTIONS]
    boxes = boxes[kept] - (left, top, 0, 0)
    boxes[:, 2:] += boxes[:, :2]
    limit = picture.shape[1], picture.shape[0]
    boxes = np.clip(boxes * np.tile([limit[0] / width, limit[1] / height], 2), 0, (*limit, *limit))
    return boxes, scores[kept], labels[kept]


# ----------------------------------------------------------------------------------------------------------------------
# The worker: reads what to prepare, says what it has, then answers each "run" by seconds


def work() -> None:
    """Prepare the contestants of the specification on the first line, then time what each further line names."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints is no answer
    spec = json.loads(sys.stdin.readline())
    torch.set_num_threads(spec["threads"])
    cv2.setNumThreads(spec["threads"])
    makers: dict[str, Callable[[dict[str, Any]], Iterator[Contestant]]] = {
        "opencv": opencv_models,
        "ultralytics": ultralytics_models,
    }
    if spec["own"]:
        makers = {"detkit": detkit_models, "torchvision": selections, **makers}
    timers: dict[str, tuple[Timed, int]] = {}
    entries, missing = [], []
    for name, make in makers.items():
        try:
            for case, contestant, function, facts in make(spec):
                entries.append({"case": case, "contestant": contestant, "facts": facts})
                timers[f"{case}|{contestant}"] = function, _repeats(function)
        except ModuleNotFoundError as error:
            missing.append(f"{name} (no module {error.name})")
    torch.set_num_threads(spec["threads"])
    cv2.setNumThreads(spec["threads"])
    versions = {"python": platform.python_version(), "torch": torch.__version__, "opencv": cv2.__version__}
    print(json.dumps({"entries": entries, "missing": missing, "versions": versions}), file=answers, flush=True)
    for line in sys.stdin:
        function, repeats = timers[line.rstrip("\n").removeprefix("run ")]
        start = time.perf_counter()
        for _ in range(repeats):
            function()
        print((time.perf_counter() - start) / repeats, file=answers, flush=True)


def _repeats(function: Timed, shortest: float = 0.01) -> int:
    """Warm a function up, and return how often it runs in the shortest time worth measuring."""
    for _ in range(2):
        function()
    start = time.perf_counter()
    function()
    return max(1, math.ceil(shortest / (time.perf_counter() - start)))


class Worker:
    """A process that holds contestants."""

    def __init__(self, python: str, spec: dict[str, Any]) -> None:
        environment = {
            "OMP_NUM_THREADS": str(spec["threads"]),
            "YOLO_OFFLINE": "true",
            "YOLO_VERBOSE": "false",
            "YOLO_CONFIG_DIR": spec["folder"],
        }
        self.python = python
        self.process = subprocess.Popen(
            [python, __file__, "--worker"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env=os.environ | environment,
        )  # fmt: skip
        self.about = json.loads(self.ask(json.dumps(spec)))

    def ask(self, line: str) -> str:
        """Send a line and return the answer."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        answer = ""
        with suppress(BrokenPipeError):
            print(line, file=self.process.stdin, flush=True)
            answer = self.process.stdout.readline()
        if not answer:
            raise SystemExit(f"the worker of {self.python} ended with code {self.process.wait()}; see above")
        return answer

    def run(self, case: str, contestant: str) -> float:
        """Seconds that the contestant takes for the case once."""
        return float(self.ask(f"run {case}|{contestant}"))

    def close(self) -> None:
        """End the process."""
        self.process.communicate()


# ----------------------------------------------------------------------------------------------------------------------
# Models for the contestants


def prepare(folder: Path, shared: Path, names: Sequence[str], quick: bool) -> dict[str, Any]:
    """Write picture, weights, ONNX files and expected maps to the folder, and return what a worker has to know."""
    from detkit.data.picture import sample_picture

    picture = cv2.resize(sample_picture("chelsea"), (640, 427), interpolation=cv2.INTER_CUBIC)
    np.save(folder / "picture.npy", picture)
    models: dict[str, Any] = {}
    for name in names:
        if name in MODELS:
            entry, weights = MODELS[name], folder / f"{name}.safetensors"
            settings = ["preprocess.size=[128, 128]"] if quick else []
            _write_random_weights(entry["model"], settings, picture, weights)
            load = {"name": entry["model"], "weights": str(weights), "settings": settings}
            models[name] = {"ultralytics": entry["ultralytics"]} | _export(folder / name, load, picture)
        elif (shared / YOLO_FASTEST).is_file():
            models[name] = _export(folder / name, {"name": str(shared / YOLO_FASTEST)}, picture)
    return {"folder": str(folder), "picture": str(folder / "picture.npy"), "models": models}


def _write_random_weights(config_name: str, settings: list[str], picture: Any, path: Path) -> None:
    """Weights of a detkit config that let a realistic number of candidates pass on the picture."""
    from safetensors.torch import save_file

    from detkit.detectors.yolov3 import YOLOv3
    from detkit.model import build_detector, read_config
    from detkit.ops.yolo import cells

    config = read_config(config_name, settings)
    torch.manual_seed(0)
    detector = build_detector(config)
    assert isinstance(detector, YOLOv3)
    images = config.preprocess([picture])[0].images
    _settle_norms(detector, images)
    with torch.no_grad():
        for head, raw, anchors in zip(detector.heads, detector(images), detector.anchors, strict=True):
            assert isinstance(head, nn.Conv2d)
            assert head.bias is not None
            # Offsets vary little; a class is told in one cell of fifty, so that a box seldom has two.
            deviation, mean = torch.full((raw.shape[1],), 2.0).view(len(anchors), -1), torch.zeros(raw.shape[1])
            deviation[:, :4] = 0.3
            mean.view(len(anchors), -1)[:, 5:] = -4.2
            gain = deviation.flatten() / raw.std((0, 2, 3))
            head.weight *= gain[:, None, None, None]
            head.bias.copy_((head.bias - raw.mean((0, 2, 3))) * gain + mean)
        maps = detector(images)
        objectness = [cells(raw, len(anchors))[..., 4] for raw, anchors in zip(maps, detector.anchors, strict=True)]
        low, high = -20.0, 20.0
        for _ in range(20):  # bisection for what to add to the objectness
            middle = (low + high) / 2
            for x in objectness:
                x += middle
            passed = int(detector.decode(maps, SCORE).count)
            for x in objectness:
                x -= middle
            low, high = (low, middle) if passed > CANDIDATES else (middle, high)
        for head, anchors in zip(detector.heads, detector.anchors, strict=True):
            head.bias.view(len(anchors), -1)[:, 4] += low  # type: ignore[operator]
    save_file(detector.state_dict(), path)


def _export(stem: Path, load: dict[str, Any], picture: Any) -> dict[str, Any]:
    """Write the ONNX file of a model, its input and its raw maps; return what is needed to use them."""
    import detkit
    from detkit.detectors.darknet import GridHead
    from detkit.detectors.yolov3 import YOLOv3

    model = detkit.load(device="cpu", **load)
    batch, (placement,) = model.preprocess([picture])
    images = batch.images.contiguous()
    with torch.inference_mode():
        raw = model.detector(images)
        candidates = int(model.detector.decode(raw, SCORE).count)
    names = [f"map{i}" for i in range(len(raw))]
    with warnings.catch_warnings(action="ignore"):  # the exporter that needs no further package is called old
        torch.onnx.export(model.detector, (images,), str(stem.with_suffix(".onnx")), output_names=names, dynamo=False)
    np.save(stem.with_suffix(".input.npy"), images.numpy())
    for name, x in zip(names, raw, strict=True):
        np.save(stem.with_suffix(f".{name}.npy"), x.numpy())
    detector: Any = model.detector
    anchors = (
        detector.anchors
        if isinstance(detector, YOLOv3)
        else [layer.anchors for layer in detector.heads if isinstance(layer, GridHead)]
    )
    return {
        "load": load,
        "onnx": str(stem.with_suffix(".onnx")),
        "input": str(stem.with_suffix(".input.npy")),
        "raw": [str(stem.with_suffix(f".{name}.npy")) for name in names],
        "anchors": [x.tolist() for x in anchors],
        "size": images.shape[-2:],
        "resized": placement.resized,
        "offset": placement.offset,
        "candidates": candidates,
    }


# ----------------------------------------------------------------------------------------------------------------------
# The run and its report


def measure(workers: list[Worker], rounds: int, seconds: float) -> list[dict[str, Any]]:
    """Time all cases; the contestants of one take turns until there are enough rounds, or three and no time is left."""
    cases: dict[str, list[tuple[str, Worker, dict[str, Any]]]] = {}
    for worker in workers:
        for entry in worker.about["entries"]:
            cases.setdefault(entry["case"], []).append((entry["contestant"], worker, entry["facts"]))
    results = []
    for case, contestants in cases.items():
        times: list[list[float]] = [[] for _ in contestants]
        end = time.monotonic() + seconds
        while len(times[0]) < rounds and (len(times[0]) < 3 or time.monotonic() < end):
            for (contestant, worker, _), found in zip(contestants, times, strict=True):
                found.append(worker.run(case, contestant))
        first = median(times[0])
        results.append({
            "case": case,
            "rounds": len(times[0]),
            "contestants": [
                {
                    "name": name, "median": median(found), "min": min(found), "max": max(found),
                    "ratio": first / median(found), **facts,
                }
                for (name, _, facts), found in zip(contestants, times, strict=True)
            ],
        })  # fmt: skip
    return results


def show(report: dict[str, Any]) -> None:
    """Print the report."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    console.width = max(console.width, 130)
    table = Table(title="Milliseconds on the CPU; ratio = median of the case's first contestant ÷ this one's")
    for column in ("case", "contestant"):
        table.add_column(column, no_wrap=True)
    for column in ("median", "min", "max", "ratio", "GFLOP", "boxes"):
        table.add_column(column, justify="right", no_wrap=True)
    for result in report["cases"]:
        for i, row in enumerate(result["contestants"]):
            table.add_row(
                result["case"] if i == 0 else "",
                row["name"],
                *(f"{1000 * row[key]:.2f}" for key in ("median", "min", "max")),
                f"{row['ratio']:.2f}",
                f"{row['gflop']:.1f}" if "gflop" in row else "",
                str(row.get("detections", "")),
                end_section=i == len(result["contestants"]) - 1,
            )
    console.print(table)
    device = report["device"]
    console.print(f"{device['cpu']}, {device['cores']} cores, {report['threads']} threads, load {device['load']:.1f}")
    for worker in report["workers"]:
        console.print(", ".join(f"{name} {version}" for name, version in worker["versions"].items()))
        if worker["missing"]:
            console.print(f"left out there: {', '.join(worker['missing'])}")


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the report there, too")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="threads of every contestant")
    parser.add_argument("--rounds", type=int, default=15, help="times that each contestant of a case runs")
    parser.add_argument("--seconds", type=float, default=60, help="a case ends then if it had three rounds")
    parser.add_argument("--only", choices=("models", "select"), help="leave out the rest")
    parser.add_argument("--peer-python", metavar="PATH", help="interpreter of an environment with further contestants")
    parser.add_argument("--quick", action="store_true", help="a small model and few boxes: shows that all works")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        return work()
    shared = Path(os.environ.get("DETKIT_SHARED", Path(__file__).parents[2] / "shared" / "data"))
    models = ["yolov3-tiny"] if options.quick else [*MODELS, "yolo-fastest"]
    counts = [1000] if options.quick else [1000, 10_000, 50_000]
    if options.only:
        models, counts = (models, []) if options.only == "models" else ([], counts)
    torch.set_num_threads(options.threads)
    load = os.getloadavg()[0]
    workers: list[Worker] = []
    with tempfile.TemporaryDirectory() as folder:
        spec = prepare(Path(folder), shared, models, options.quick) | {"threads": options.threads, "select": counts}
        try:
            for own, python in ((True, sys.executable), (False, options.peer_python)):
                if python:
                    workers.append(Worker(python, spec | {"own": own}))
            cases = measure(workers, 3 if options.quick else options.rounds, options.seconds)
        finally:
            for worker in workers:
                worker.close()
    report = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": {"cpu": cpu_name(), "cores": os.cpu_count(), "system": platform.platform(), "load": load},
        "threads": options.threads,
        "workers": [{"versions": w.about["versions"], "missing": w.about["missing"]} for w in workers],
        "candidates": {name: model["candidates"] for name, model in spec["models"].items()},
        "cases": cases,
    }
    show(report)
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n")


def borrow_packages(python: str | None) -> None:
    """Let this process import what another environment has and its own lacks; an interpreter of the same version."""
    if python:
        command = [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
        try:
            found = subprocess.run(command, capture_output=True, text=True, check=True)
        except (OSError, subprocess.CalledProcessError) as error:
            raise SystemExit(f"--peer-python {python}: cannot be asked for its packages ({error})") from None
        sys.path.append(found.stdout.strip())


def cpu_name() -> str:
    """Return what the processor calls itself."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


if __name__ == "__main__":
    main()
