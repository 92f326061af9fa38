"""Times decoding and selection, of whole batches, against torchvision's and Ultralytics' NMS.

    python tools/bench_select.py --json tools/results/bench_select.json

The contestants of a case take turns (A B A B …), so that whatever else the machine does falls on all of them. A case
reports medians and their ratios. On a GPU the time ends when its work does, and inputs alternate, so that none is still
in a cache. With one thread of the CPU it is processor time, which other programs disturb less.

  decode    raw heads of YOLOv3 at 608 × 608 with 80 classes, 22,743 × 85 numbers a picture → candidates.
  detect    the same → the best 100 after NMS, with scores above .001 (as for AP) and .25 (as for use).
  rpn       proposals of five levels, at most 1,000 each → the best 1,000 after NMS within the levels.
  clusters  candidates of one picture as a detector gives them (`clustered` of tools/bench_cpu.py) → all that NMS
            leaves, or the best 100, against `torchvision.ops.nms` class by class.

Contestants
  detkit            `yolo_candidates` and `select`; on a GPU also without its kernels.
  every anchor      boxes and scores of all anchors in plain PyTorch: no threshold, no table. The peers start from it.
  torchvision loop  all anchors decoded at once in plain PyTorch, then `batched_nms` picture by picture.
  torchvision trick the same decoding, then one `nms` for all pictures and classes, which are moved apart. Their
                    coordinates grow with pictures and classes, so that it rounds and may leave other boxes.
  ultralytics       the same decoding, then its `non_max_suppression` without the time limit that drops pictures; where
                    it can be imported. AGPL-3.0: it is timed here and is no part of detkit.
  forward bf16      no contestant: the network whose heads these are, so that its ratio says how many times as long as
                    decoding and selection it takes.

The heads are random, with the statistics of trained ones: 8 % of the anchors have an objectness above .001 and .4 % lie
on an object. The floor of a case that starts from heads is the time to read them once at the bandwidth of a large copy
(bytes read and written), measured in the same run; `share` is the floor ÷ the median. `boxes` says how many are left.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

import torch
import torchvision
from bench_cpu import borrow_packages, clustered, cpu_name
from torch import Tensor

from detkit.inference import for_inference
from detkit.model import build_detector, read_config
from detkit.ops.anchors import cell_corners
from detkit.ops.boxes import xyxy_to_cxcywh
from detkit.ops.nms import Selection, select
from detkit.ops.yolo import cells, yolo_boxes, yolo_candidates
from detkit.structures import Candidates

SIDE, CLASSES, IOU, BEST = 608, 80, 0.45, 100
ANCHORS = [
    [(10, 13), (16, 30), (33, 23)], [(30, 61), (62, 45), (59, 119)], [(116, 90), (156, 198), (373, 326)],
]  # fmt: skip
RPN_ANCHORS = (1000, 1000, 1000, 1000, 507)  # a picture of 800 × 1333 has no more on the coarsest map

Found = tuple[Tensor, Tensor, Tensor]  # boxes, scores, labels of all pictures, one after the other


@dataclass
class Case:
    """What to time: functions of an input, several inputs alike, and the bytes that each must read."""

    name: str
    inputs: list[Any]
    contestants: dict[str, Callable[[Any], Any]]
    read: int = 0
    facts: dict[str, Any] = field(default_factory=dict)


# ----------------------------------------------------------------------------------------------------------------------
# Inputs


def heads(batch: int, seed: int, device: torch.device, dtype: torch.dtype, layout: torch.memory_format) -> list[Tensor]:
    """Raw maps [B, 3·85, h, w] of YOLOv3 with the statistics of trained ones."""
    random = torch.Generator(device).manual_seed(seed)
    maps = []
    for stride in (8, 16, 32):
        side = SIDE // stride
        grid = torch.randn(batch, 3, 5 + CLASSES, side, side, generator=random, device=device)
        on_object = torch.rand(batch, 3, side, side, generator=random, device=device) < 0.004
        grid[:, :, :4] *= 0.5
        grid[:, :, 4] = torch.where(on_object, 1 + 2 * grid[:, :, 4], -9 + 1.5 * grid[:, :, 4])
        grid[:, :, 5:] = grid[:, :, 5:] * 1.5 - 6
        label = torch.randint(CLASSES, (batch, 3, 1, side, side), generator=random, device=device)
        grid[:, :, 5:].scatter_add_(2, label, 8.0 * on_object[:, :, None])
        maps.append(grid.flatten(1, 2).to(dtype).contiguous(memory_format=layout))
    return maps


def proposals(batch: int, seed: int, device: torch.device) -> Candidates:
    """Boxes of an RPN's five levels before NMS, best first within a level, around 30 objects of a picture."""
    random = torch.Generator().manual_seed(seed)
    n = sum(RPN_ANCHORS)
    objects = torch.rand(batch, 30, 2, generator=random) * 800
    size = 16 * 20 ** torch.rand(batch, 30, 2, generator=random)
    which = torch.randint(30, (batch, n, 1), generator=random).expand(-1, -1, 2)
    side = size.gather(1, which) * torch.exp(0.2 * torch.randn(batch, n, 2, generator=random))
    centre = objects.gather(1, which) + 0.2 * side * torch.randn(batch, n, 2, generator=random)
    scores = [torch.rand(batch, k, generator=random).sort(descending=True).values for k in RPN_ANCHORS]
    levels = torch.repeat_interleave(torch.arange(5), torch.tensor(RPN_ANCHORS)).expand(batch, -1).contiguous()
    boxes = torch.cat([centre - side / 2, centre + side / 2], -1)
    return Candidates(boxes, torch.cat(scores, 1), levels, torch.full((batch,), n)).to(device)


# ----------------------------------------------------------------------------------------------------------------------
# Contestants


def plain_decoding(maps: list[Tensor]) -> tuple[Tensor, Tensor]:
    """All anchors of all maps: boxes [B, N, 4] and class scores [B, N, C]."""
    boxes, scores = [], []
    for raw, shapes in zip(maps, ANCHORS, strict=True):
        grid = cells(raw, len(shapes)).float()
        _, height, width, _, _ = grid.shape
        corner = cell_corners(height, width, raw.device).view(height, width, 1, 2)
        stride = grid.new_tensor([SIDE / width, SIDE / height])
        boxes.append(yolo_boxes(grid[..., :4], corner, grid.new_tensor(shapes), stride).flatten(1, 3))
        scores.append((grid[..., 4:5].sigmoid() * grid[..., 5:].sigmoid()).flatten(1, 3))
    return torch.cat(boxes, 1), torch.cat(scores, 1)


def torchvision_loop(boxes: Tensor, scores: Tensor, threshold: float) -> Found:
    """NMS picture by picture, with detkit's limits."""
    found = []
    for b in range(len(boxes)):
        row, label = (scores[b] > threshold).nonzero().unbind(1)
        found.append(_batched_nms(boxes[b, row], scores[b, row, label], label, IOU, Selection().cap, BEST))
    return _joined(found)


def torchvision_trick(boxes: Tensor, scores: Tensor, threshold: float) -> Found:
    """One NMS for all pictures and classes, each moved to a place of its own."""
    picture, row, label = (scores > threshold).nonzero().unbind(1)
    candidates, score = boxes[picture, row], scores[picture, row, label]
    return _apart(candidates, score, label, picture, CLASSES, IOU, BEST)


def ultralytics_nms() -> Callable[[Tensor, Tensor, float], Found] | None:
    """Ultralytics' NMS, or none where it is not installed."""
    try:
        from ultralytics.utils.nms import non_max_suppression  # type: ignore[import-not-found]
    except ModuleNotFoundError:
        return None

    def nms(boxes: Tensor, scores: Tensor, threshold: float) -> Found:
        said = torch.cat([xyxy_to_cxcywh(boxes), scores], 2).transpose(1, 2)
        found = non_max_suppression(
            said, threshold, IOU, multi_label=True, max_det=BEST, nc=CLASSES, max_nms=Selection().cap, max_time_img=1e9
        )
        return _joined([(x[:, :4], x[:, 4], x[:, 5]) for x in found])

    return nms


def forward_of_yolov3(device: torch.device) -> Callable[[int], Callable[[Any], Any]]:
    """For a number of pictures, what runs YOLOv3 on them in bf16, whatever it is given."""
    network = build_detector(read_config("yolov3_darknet53_coco", [f"preprocess.size=[{SIDE}, {SIDE}]"]))
    for_inference(network, device, "bf16")

    def of(batch: int) -> Callable[[Any], Any]:
        images = torch.rand(batch, 3, SIDE, SIDE, device=device).contiguous(memory_format=torch.channels_last)

        def forward(_: Any) -> Any:
            with torch.autocast(device.type, torch.bfloat16):
                return network(images)

        return forward

    return of


def without_kernels(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """The same, by what detkit does on a GPU where Triton is missing."""

    def plain(value: Any) -> Any:
        with patch("detkit.ops.kernels.serve", return_value=False):
            return function(value)

    return plain


def nms_by_class(boxes: Tensor, scores: Tensor, labels: Tensor, limit: int) -> Found:
    """`torchvision.ops.nms` for each class of one picture, of the scores above 0 as for detkit."""
    entering = scores > 0
    boxes, scores, labels = boxes[entering], scores[entering], labels[entering]
    kept = [
        rows[torchvision.ops.nms(boxes[rows], scores[rows], 0.5)]
        for rows in ((labels == label).nonzero()[:, 0] for label in labels.unique())
    ]
    best = torch.cat(kept)
    best = best[scores[best].argsort(descending=True)[:limit]]
    return boxes[best], scores[best], labels[best]


def _batched_nms(boxes: Tensor, scores: Tensor, labels: Tensor, iou: float, cap: int, limit: int) -> Found:
    if len(scores) > cap:
        scores, best = scores.topk(cap)
        boxes, labels = boxes[best], labels[best]
    kept = torchvision.ops.batched_nms(boxes, scores, labels, iou)[:limit]
    return boxes[kept], scores[kept], labels[kept]


def _apart(
    boxes: Tensor, scores: Tensor, labels: Tensor, picture: Tensor, classes: int, iou: float, limit: int
) -> Found:
    if not len(boxes):
        return boxes, scores, labels
    place = (picture * classes + labels) * (boxes.max() - boxes.min() + 1)
    kept = torchvision.ops.nms(boxes + place[:, None], scores, iou)
    kept = kept[picture[kept].argsort(stable=True)]
    count = torch.bincount(picture[kept])
    rank = torch.arange(len(kept), device=kept.device) - (count.cumsum(0) - count)[picture[kept]]
    kept = kept[rank < limit]
    return boxes[kept], scores[kept], labels[kept]


def _joined(found: list[Found]) -> Found:
    boxes, scores, labels = (torch.cat(column) for column in zip(*found, strict=True))
    return boxes, scores, labels


# ----------------------------------------------------------------------------------------------------------------------
# Cases


def head_cases(options: argparse.Namespace, device: torch.device) -> Iterator[Case]:
    """From raw heads: decoding alone, then decoding and selection."""
    layout = torch.channels_last if options.channels_last else torch.contiguous_format
    dtype = getattr(torch, options.dtype)
    anchors = [torch.tensor(shapes, dtype=torch.float, device=device) for shapes in ANCHORS]
    peer, forward_of = ultralytics_nms(), forward_of_yolov3(device)
    if peer is None:
        print("left out: ultralytics, which --peer-python can bring")

    for batch in options.batch:
        forward = forward_of(batch)
        one = heads(batch, 0, device, dtype, layout)
        read = sum(raw.numel() * raw.element_size() for raw in one)
        # Enough inputs that the one that is next has left the caches of a GPU.
        more = min(16, -(-(200 << 20) // read)) if device.type == "cuda" else 1
        inputs = [one, *(heads(batch, seed, device, dtype, layout) for seed in range(1, more))]
        for threshold in (0.001, 0.25):
            selection = Selection(score=threshold, iou=IOU, max_detections=BEST)

            def decode(maps: list[Tensor], threshold: float = threshold) -> Candidates:
                return yolo_candidates(maps, anchors, (SIDE, SIDE), threshold)

            def detect(maps: list[Tensor], decode: Any = decode, selection: Selection = selection) -> Candidates:
                return select(decode(maps), selection)

            def then(nms: Callable[[Tensor, Tensor, float], Found], threshold: float = threshold) -> Any:
                return lambda maps: nms(*plain_decoding(maps), threshold)

            label = f"B = {batch}, scores above {threshold}"
            facts = {"candidates": float(decode(one).count.float().mean())}
            yield Case(f"decode, {label}", inputs, {"detkit": decode, "every anchor": plain_decoding}, read, facts)
            contestants = {
                "detkit": detect,
                "torchvision loop": then(torchvision_loop),
                "torchvision trick": then(torchvision_trick),
            }
            if device.type == "cuda":
                contestants["detkit without kernels"] = without_kernels(detect)
            if peer is not None:
                contestants["ultralytics"] = then(peer)
            contestants["forward bf16"] = forward
            yield Case(f"detect, {label}", inputs, contestants, read, facts)


def rpn_cases(options: argparse.Namespace, device: torch.device) -> Iterator[Case]:
    """From the best anchors of five levels to 1,000 proposals."""
    rule = Selection(score=0, iou=0.7, max_detections=1000, max_candidates=10**9)

    def ours(table: Candidates) -> Candidates:
        return select(table, rule)

    def loop(table: Candidates) -> Found:
        columns = zip(table.boxes, table.scores, table.labels, strict=True)
        return _joined([_batched_nms(*row, rule.iou, rule.cap, rule.max_detections) for row in columns])

    def trick(table: Candidates) -> Found:
        batch, n = table.scores.shape
        picture = torch.arange(batch, device=table.scores.device).repeat_interleave(n)
        rows = table.boxes.flatten(0, 1), table.scores.flatten(), table.labels.flatten()
        return _apart(*rows, picture, 5, rule.iou, rule.max_detections)

    for batch in options.batch:
        if batch <= 8:
            inputs = [proposals(batch, seed, device) for seed in range(4)]
            contestants = {"detkit": ours, "torchvision loop": loop, "torchvision trick": trick}
            yield Case(f"rpn, B = {batch}", inputs, contestants)


def cluster_cases(options: argparse.Namespace, device: torch.device) -> Iterator[Case]:
    """From the candidates of one picture."""
    for count in options.clusters:
        for classes in (1, CLASSES):
            boxes, scores, labels = (x.to(device) for x in clustered(count, classes))
            table = Candidates(boxes[None], scores[None], labels[None], torch.tensor([count], device=device))
            for limit in (BEST, count):
                rule = Selection(score=0, iou=0.5, max_detections=limit, max_candidates=count)

                def ours(table: Candidates, rule: Selection = rule) -> Candidates:
                    return select(table, rule)

                def theirs(table: Candidates, limit: int = limit) -> Found:
                    return nms_by_class(table.boxes[0], table.scores[0], table.labels[0], limit)

                found, expected = ours(table), theirs(table)
                left = int(found.count)
                if left != len(expected[1]) or not torch.equal(found.boxes[0, :left], expected[0]):
                    raise SystemExit(f"clusters of {count}: detkit and torchvision leave different boxes")
                name = f"clusters, {count} of {classes} class{'es' * (classes > 1)}, "
                name += "all" if limit == count else f"best {limit}"
                yield Case(name, [table], {"detkit": ours, "torchvision by class": theirs})


# ----------------------------------------------------------------------------------------------------------------------
# The run and its report


def seconds_of(function: Callable[[Any], Any], inputs: list[Any], repeats: int, device: torch.device) -> float:
    """Seconds that a call takes, over so many on inputs in turn."""
    alone = device.type == "cpu" and torch.get_num_threads() == 1
    clock = time.process_time if alone else time.perf_counter
    synchronize(device)
    begin = clock()
    for i in range(repeats):
        function(inputs[i % len(inputs)])
    synchronize(device)
    return (clock() - begin) / repeats


def synchronize(device: torch.device) -> None:
    """Wait until a GPU has done its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def bandwidth(device: torch.device, rounds: int) -> float:
    """Bytes read and written in a second by a large copy."""
    source = torch.rand((1 << 28) if device.type == "cuda" else (1 << 25), device=device)
    target = torch.empty_like(source)
    times = [seconds_of(target.copy_, [source], 3, device) for _ in range(rounds + 1)]
    return 2 * source.numel() * source.element_size() / median(times[1:])


def measure(case: Case, options: argparse.Namespace, device: torch.device, bytes_per_second: float) -> dict[str, Any]:
    """Time a case; its contestants take turns until there are enough rounds, or three and no time is left."""
    repeats, left, failed = {}, {}, {}
    for name, function in case.contestants.items():
        try:
            found = function(case.inputs[0])  # the first call compiles
            if not case.name.startswith("decode") and not name.startswith("forward"):
                left[name] = int(found.count.sum()) if isinstance(found, Candidates) else len(found[1])
            once = seconds_of(function, case.inputs, 1, device)
            repeats[name] = max(1, min(1000, round(0.02 / once)))
        except RuntimeError as error:  # out of memory, as by the N × N bits of one NMS for all pictures
            if name == "detkit":
                raise
            failed[name] = str(error).splitlines()[0]
            torch.cuda.empty_cache()
    times: dict[str, list[float]] = {name: [] for name in repeats}
    end = time.monotonic() + options.seconds
    while len(times["detkit"]) < options.rounds and (len(times["detkit"]) < 3 or time.monotonic() < end):
        for name, found in times.items():
            found.append(seconds_of(case.contestants[name], case.inputs, repeats[name], device))
    first, floor = median(times["detkit"]), case.read / bytes_per_second
    rows: list[dict[str, Any]] = []
    for name, found in times.items():
        row: dict[str, Any] = {"name": name, "median": median(found), "min": min(found), "max": max(found)}
        row["ratio"] = row["median"] / first
        if case.read and not name.startswith("forward"):
            row["share"] = floor / row["median"]
        if name in left:
            row["boxes"] = left[name]
        rows.append(row)
    about = {"case": case.name, "rounds": len(times["detkit"]), "floor": floor, **case.facts}
    return {**about, "contestants": rows, "failed": failed}


def show(report: dict[str, Any]) -> None:
    """Print the report."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    console.width = max(console.width, 150)
    table = Table(title="Milliseconds; ratio = median ÷ detkit's; share = the floor's of the median")
    for column in ("case", "contestant"):
        table.add_column(column, no_wrap=True)
    for column in ("median", "min", "max", "ratio", "floor", "share", "boxes"):
        table.add_column(column, justify="right", no_wrap=True)
    for result in report["cases"]:
        for i, row in enumerate(result["contestants"]):
            table.add_row(
                result["case"] if i == 0 else "",
                row["name"],
                *(f"{1000 * row[key]:.3f}" for key in ("median", "min", "max")),
                f"{row['ratio']:.2f}",
                f"{1000 * result['floor']:.3f}" if "share" in row else "",
                f"{row['share']:.2f}" if "share" in row else "",
                str(row.get("boxes", "")),
                end_section=i == len(result["contestants"]) - 1,
            )
    console.print(table)
    for result in report["cases"]:
        for name, reason in result["failed"].items():
            console.print(f"{result['case']}: {name} fails ({reason})")
    console.print(f"{report['device']['name']}, copy {report['bandwidth'] / 1e9:.0f} GB/s, {report['versions']}")


def versions() -> dict[str, str]:
    """The packages that take part, as far as they are there."""
    found = {"python": platform.python_version()}
    for name in ("torch", "torchvision", "triton", "numba", "ultralytics"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "none"
    return found


@torch.inference_mode()
def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the report there, too")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--batch", type=_numbers, help="pictures, by default 1,8,64 on a GPU and 1 on the CPU")
    parser.add_argument("--clusters", type=_numbers, default=[300, 1000, 10_000, 50_000], help="candidates")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32", help="of the heads")
    parser.add_argument("--channels-last", action="store_true", help="the heads' memory format")
    parser.add_argument("--only", choices=("heads", "rpn", "clusters"), help="leave out the rest")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of the CPU")
    parser.add_argument("--rounds", type=int, default=15, help="times that each contestant of a case runs")
    parser.add_argument("--seconds", type=float, default=20, help="a case ends then if it had three rounds")
    parser.add_argument("--peer-python", metavar="PATH", help="interpreter of an environment that has ultralytics")
    options = parser.parse_args()
    borrow_packages(options.peer_python)
    device = torch.device(options.device)
    options.batch = options.batch or ([1, 8, 64] if device.type == "cuda" else [1])
    torch.set_num_threads(options.threads)
    load = os.getloadavg()[0]
    bytes_per_second = bandwidth(device, options.rounds)
    makers = {"heads": head_cases, "rpn": rpn_cases, "clusters": cluster_cases}
    chosen = [make for name, make in makers.items() if options.only in (None, name)]
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name()
    report: dict[str, Any] = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": {
            "type": device.type, "name": name, "cores": os.cpu_count(), "system": platform.platform(), "load": load,
        },
        "threads": options.threads,
        "versions": versions(),
        "heads": {"dtype": options.dtype, "channels_last": options.channels_last},
        "bandwidth": bytes_per_second,
        "cases": [],
    }  # fmt: skip
    for make in chosen:
        for case in make(options, device):
            print(case.name, flush=True)
            report["cases"].append(measure(case, options, device, bytes_per_second))
            torch.set_num_threads(options.threads)  # which ultralytics sets
            if options.json:  # what a run that is stopped has measured is there
                options.json.write_text(json.dumps(report, indent=1) + "\n")
    show(report)


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


if __name__ == "__main__":
    main()
