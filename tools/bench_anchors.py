"""Times detkit's search for anchors, compares what it finds with others, and shows how both grow with the boxes.

    python tools/bench_anchors.py --json bench.json --peer-python ~/peers/bin/python

Contestants get identical boxes and are measured by the same average IoU (of every box with the anchor that fits it
best). Detkit and the peer take turns, so that whatever else the machine does falls on both; each has ten runs that
differ in their seed. Times are of the call alone, on warm processes, by the clock and by the processor.

  detkit       `detkit.ops.kmeans.find_anchors`.
  ultralytics  `kmean_anchors` of YOLOv5 (utils/autoanchor.py) with its default settings, 1000 generations. It maximises
               a ratio of sides, not IoU. AGPL-3.0: it is run here and is no part of detkit.
  medians      k-means with 1 − IoU and medians from random boxes, written down here as public scripts have it.

The peer lives in an environment of its own, and is left out without one (`yolov5` is the package that holds it):

    python -m venv ~/peers && ~/peers/bin/pip install torch yolov5

The boxes are generated, 36,000 of them, and with the shared data (DETKIT_SHARED) those of BCCD and of a part of COCO.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

SIDE = 416
SPLITS = {"bccd": "train", "coco_subset": "train2017+extra"}
COUNTS = (10_000, 100_000, 1_000_000, 10_000_000)

Shapes = NDArray[np.float32]


def generated(count: int, seed: int = 0) -> Shapes:
    """Boxes [N, 2] of every size and several ratios, in blocks, so that ten million need no more than their memory."""
    random = np.random.default_rng(seed)
    shapes = np.empty((count, 2), np.float32)
    for start in range(0, count, 50_000):
        block = shapes[start : start + 50_000]
        size, ratio = random.normal(3.6, 0.9, (len(block), 1)), random.normal(0, 0.35, (len(block), 1))
        block[:] = np.exp(size + np.hstack([ratio, -ratio])).clip(2, SIDE)
    return shapes


def real(folder: Path, split: str) -> Shapes:
    """The boxes of a data set, letterboxed."""
    from detkit.anchors.run import network_boxes
    from detkit.data.dataset import load_dataset
    from detkit.preprocess import Preprocess

    return np.asarray(network_boxes(load_dataset(folder, split), Preprocess(size=(SIDE, SIDE))).shapes, np.float32)


def plain_medians(shapes: Shapes, k: int, seed: int) -> NDArray[Any]:
    """K-means with 1 − IoU from k random boxes, whose centres are medians, until no box changes its anchor."""
    from detkit.ops.kmeans import _nearest

    anchors = np.random.default_rng(seed).choice(shapes, k, replace=False)
    before = None
    for _ in range(300):
        label, _ = _nearest(shapes, anchors)
        if before is not None and np.array_equal(label, before):
            break
        before = label
        anchors = np.array([
            np.median(shapes[label == i], axis=0) if (label == i).any() else anchors[i] for i in range(k)
        ])  # fmt: skip
    return anchors


def timed(find: Callable[[], Any]) -> dict[str, Any]:
    """The anchors that a call returns, and its seconds by the clock and by the processor."""
    clock, processor = time.perf_counter(), time.process_time()
    anchors = find()
    return {
        "seconds": time.perf_counter() - clock,
        "cpu_seconds": time.process_time() - processor,
        "anchors": np.asarray(anchors, np.float64).tolist(),
    }


class Peer:
    """A process of another interpreter that finds anchors when asked."""

    def __init__(self, python: str) -> None:
        self.process = subprocess.Popen(
            [python, __file__, "--worker"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self.process.stdin
        assert self.process.stdout
        self.input, self.output = self.process.stdin, self.process.stdout
        self.versions = self._answer()

    def run(self, file: Path, k: int, seed: int) -> dict[str, Any]:
        """Find anchors for the boxes in a .npy file."""
        self.input.write(json.dumps([str(file), k, seed]) + "\n")
        self.input.flush()
        return self._answer()

    def close(self) -> None:
        """End the process."""
        self.process.communicate()

    def _answer(self) -> Any:
        line = self.output.readline()
        if not line:
            raise SystemExit(f"{self.process.args[0]} ended with code {self.process.wait()}")  # type: ignore[index]
        return json.loads(line)


def work() -> None:
    """Answer requests on standard input with what the peer finds."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever the peer prints shall not mix with the answers
    import logging
    import random
    from importlib.metadata import version

    from yolov5.utils.autoanchor import kmean_anchors  # type: ignore[import-not-found]

    logging.disable()
    print(json.dumps({"yolov5": version("yolov5"), "torch": version("torch")}), file=answers, flush=True)
    for line in sys.stdin:
        file, k, seed = json.loads(line)
        shapes = np.load(file)
        labels = [np.r_[0, 0.5, 0.5, shape / SIDE][None] for shape in shapes]
        data = SimpleNamespace(shapes=np.full((len(shapes), 2), float(SIDE)), labels=labels)
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002 - what the peer draws from
        found = timed(lambda data=data, k=k: kmean_anchors(data, n=k, img_size=SIDE, verbose=False))
        print(json.dumps(found), file=answers, flush=True)


def compare(shapes: Shapes, k: int, runs: int, seconds: float, peer: Peer | None, folder: Path) -> list[dict[str, Any]]:
    """Let the contestants take turns, and return what each of them found in what time."""
    from detkit.ops.kmeans import find_anchors, measure_anchors

    file = folder / "shapes.npy"
    np.save(file, shapes)
    contestants: dict[str, Callable[[int], dict[str, Any]]] = {
        "detkit": lambda seed: timed(lambda: find_anchors(shapes, k, seed=seed).anchors),
        "medians": lambda seed: timed(lambda: plain_medians(shapes, k, seed)),
    }
    if peer is not None:
        contestants["ultralytics"] = lambda seed: peer.run(file, k, seed)
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in contestants}
    end = time.monotonic() + seconds
    for seed in range(runs):
        for name, run in contestants.items():
            if name != "ultralytics" or seed == 0 or time.monotonic() < end:
                found[name].append(run(seed))
    rows = []
    for name, results in found.items():
        values = [measure_anchors(shapes, np.array(result["anchors"])).average_iou for result in results]
        times = {key: median(result[key] for result in results) for key in ("seconds", "cpu_seconds")}
        best = int(np.argmax(values))
        rows.append(
            {
                "contestant": name,
                "runs": len(results),
                **times,
                "first": values[0],
                "worst": min(values),
                "best": values[best],
            }
            | {"best_anchors": results[best]["anchors"]}
        )
    return rows


def growth(counts: tuple[int, ...], k: int) -> list[dict[str, Any]]:
    """Seconds, and memory beyond the boxes' own, for ever more boxes; each count in a process of its own."""
    rows = []
    for count in counts:
        command = [sys.executable, __file__, "--grow", str(count), "--k", str(k)]
        rows.append(json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout))
    return rows


def grow(count: int, k: int) -> dict[str, Any]:
    """Measure one count: the time, and in another run, which that slows down, the memory."""
    import tracemalloc

    from detkit.ops.kmeans import find_anchors

    shapes = generated(count)
    found = timed(lambda: find_anchors(shapes, k).anchors)
    del found["anchors"]
    tracemalloc.start()
    find_anchors(shapes, k)
    further = tracemalloc.get_traced_memory()[1]
    return {"boxes": count, **found, "boxes_mib": shapes.nbytes / 2**20, "further_mib": further / 2**20}


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the report there, too")
    parser.add_argument("--peer-python", metavar="PATH", help="interpreter of an environment with yolov5")
    parser.add_argument("--runs", type=int, default=10, help="runs of each contestant, each with its seed")
    parser.add_argument("--seconds", type=float, default=600, help="a case's peer has no further runs after so many")
    parser.add_argument("--k", type=int, default=9, help="anchors to find")
    parser.add_argument("--quick", action="store_true", help="two runs of few boxes: shows that all works")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--grow", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        return work()
    if options.grow:
        return print(json.dumps(grow(options.grow, options.k)))
    cases = {"generated": generated(2000 if options.quick else 36_000)}
    shared = Path(os.environ.get("DETKIT_SHARED", Path(__file__).parents[2] / "shared" / "data"))
    if not options.quick:
        cases |= {name: real(shared / name, split) for name, split in SPLITS.items() if (shared / name).is_dir()}
    peer = Peer(options.peer_python) if options.peer_python else None
    report: dict[str, Any] = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {"system": platform.platform(), "cores": os.cpu_count(), "load": os.getloadavg()[0]},
        "versions": {"numpy": np.__version__, **(peer.versions if peer else {})},
        "k": options.k,
        "cases": [],
    }
    try:
        with tempfile.TemporaryDirectory() as folder:
            for name, shapes in cases.items():
                rows = compare(
                    shapes, options.k, 2 if options.quick else options.runs, options.seconds, peer, Path(folder)
                )
                report["cases"].append({"boxes": name, "count": len(shapes), "contestants": rows})
                for row in rows:
                    print(
                        f"{name} ({len(shapes)}) {row['contestant']:<12} {row['runs']:>2} × "
                        f"{row['seconds']:8.3f} s, processor {row['cpu_seconds']:8.3f} s; "
                        f"average IoU {row['worst']:.5f} … {row['best']:.5f}",
                        flush=True,
                    )
    finally:
        if peer:
            peer.close()
    report["growth"] = growth(COUNTS[:1] if options.quick else COUNTS, options.k)
    for row in report["growth"]:
        print(
            f"{row['boxes']:>10} boxes {row['seconds']:8.2f} s, processor {row['cpu_seconds']:8.2f} s, "
            f"{row['further_mib']:.0f} MiB beyond the boxes' {row['boxes_mib']:.0f}"
        )
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
