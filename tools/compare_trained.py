"""Times trained detectors of one data set side by side: milliseconds and boxes looked at, for each picture.

    python tools/compare_trained.py raccoon/ test MODEL MODEL … --json tools/results/compare_trained.json

Pixels of one RGB picture in memory → boxes in its pixels. The detectors take turns on every picture, so that whatever
else the machine does falls on all of them. Reported are medians over the pictures of the time that passes and of the
processor time, which other programs disturb less, of which `propose` is what finding proposals before the network
takes; and the boxes that the last stage scores: proposals, windows, or what the cells of a map predict.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

import detkit
from detkit.data.dataset import load_dataset
from detkit.errors import DetkitError
from detkit.model import Model


def main() -> None:
    """Measure, print and, if wanted, write a JSON file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("split")
    parser.add_argument("models", nargs="+")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    try:
        pictures = [sample.read() for sample in load_dataset(given.data, given.split).samples]
        models = {name: detkit.load(name, device=given.device) for name in given.models}
    except DetkitError as error:
        sys.exit(f"error: {error}")
    rows: dict[str, list[dict[str, float]]] = {name: [] for name in models}
    for model in models.values():
        detect(model, pictures[0])  # what the first call compiles or loads is not counted
    for picture in pictures:
        for name, model in models.items():
            rows[name].append(detect(model, picture))
    report: dict[str, Any] = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": {"system": platform.platform(), "cores": os.cpu_count(), "load": os.getloadavg()[0]}
        | ({"gpu": torch.cuda.get_device_name()} if torch.cuda.is_available() else {}),
        "threads": torch.get_num_threads(),
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "pictures": len(pictures),
        "models": {
            name: {key: round(statistics.median(row[key] for row in found), 2) for key in found[0]}
            for name, found in rows.items()
        },
    }
    for name, row in report["models"].items():
        print(
            f"{name:40} {row['ms']:9.1f} ms  {row['cpu_ms']:9.1f} ms of processor time, of which "
            f"{row['propose_cpu_ms']:9.1f} to propose  {row['boxes']:7.0f} boxes"
        )
    if given.json:
        given.json.write_text(json.dumps(report, indent=1) + "\n")


def detect(model: Model, picture: Any) -> dict[str, float]:
    """Times of one detection, and how many boxes the last stage scored."""
    scored = []
    hook = model.detector.register_forward_hook(lambda module, inputs, raw: scored.append(raw))
    begin = time.perf_counter(), time.process_time()
    proposals = model.propose(picture)
    proposed = time.process_time()
    model.predict([picture], proposals=None if proposals is None else [proposals])
    end = time.perf_counter(), time.process_time()
    hook.remove()
    with torch.inference_mode():
        boxes = sum(int(model.detector.decode(raw, -1).count.sum()) for raw in scored) / model.detector.num_classes
    return {
        "ms": 1000 * (end[0] - begin[0]),
        "cpu_ms": 1000 * (end[1] - begin[1]),
        "propose_cpu_ms": 1000 * (proposed - begin[1]),
        "boxes": boxes,
    }


if __name__ == "__main__":
    main()
